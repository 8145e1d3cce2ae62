# SPDX-License-Identifier: Apache-2.0
"""collectives.py: its arithmetic, how it ends when a rank does not, and the real thing over gloo where torch is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/nccl/files/collectives.py"
sys.path.insert(0, str(PROGRAM.parent))
collectives: Any = importlib.import_module(PROGRAM.stem)

MIB, GIB = 1024**2, 1024**3
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed here")


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize("largest", [1, 1000, MIB, 100_000_000, 8 * GIB])
def test_sizes_grow_to_the_largest_and_can_be_dealt_out(ranks: int, largest: int) -> None:
    found = collectives.sizes(largest, ranks)
    unit = collectives.ITEM * ranks
    assert found == sorted(set(found))
    assert all(size > 0 and size % unit == 0 for size in found)
    assert found[-1] == max(largest // unit, 1) * unit
    assert len(found) == 1 or found[0] >= collectives.SMALLEST


def test_sizes_of_the_default_reach_from_latency_to_bandwidth() -> None:
    assert collectives.sizes(8 * GIB, 8) == [128 * 1024 * 4**step for step in range(9)]


@pytest.mark.parametrize(
    ("collective", "ranks", "busbw"),
    [
        # 8 GB in 32 ms are 250 GB/s; by hand with the formulas of nccl-tests.
        ("all_reduce", 8, 437.5),
        ("all_reduce", 2, 250.0),
        ("all_gather", 8, 218.75),
        ("all_to_all", 4, 187.5),
    ],
)
def test_bus_bandwidth_counts_what_crosses_a_link(collective: str, ranks: int, busbw: float) -> None:
    assert collectives.bandwidths(collective, 8 * 10**9, 0.032, ranks) == {"algbw_gb_s": 250.0, "busbw_gb_s": busbw}


@pytest.mark.parametrize("collective", list(collectives.FACTORS))
def test_one_rank_has_no_bus_bandwidth(collective: str) -> None:
    assert collectives.bandwidths(collective, 10**9, 1.0, 1) == {"algbw_gb_s": 1.0, "busbw_gb_s": None}


def report(*seconds: float) -> dict[str, Any]:
    results = [{"collective": "all_reduce", "bytes": 10**9, "seconds": list(seconds)}]
    return {"torch": "2.13.0", "nccl": "2.29.7", "device": "NVIDIA H20-3e", "results": results}


def test_a_collective_is_as_slow_as_its_slowest_rank() -> None:
    document = collectives.merge([report(0.1, 0.1), report(0.1, 0.3)], "nccl", 12.345)
    assert (document["ranks"], document["nccl"], document["wall_s"]) == (2, "2.29.7", 12.35)
    (result,) = document["results"]
    assert (result["seconds"], result["seconds_min"], result["seconds_max"]) == (0.2, 0.1, 0.3)
    assert result["busbw_gb_s"] == pytest.approx(5.0)


def test_hosts_count_all_ranks_and_report_their_own() -> None:
    document = collectives.merge([report(0.1), report(0.2)], "nccl", 1.0, nodes=4)
    assert (document["ranks"], document["nodes"]) == (8, 4)
    assert document["results"][0]["busbw_gb_s"] == pytest.approx(5 * 2 * 7 / 8, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ([], {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}),
        (["--nodes=2", "--master=10.0.0.7:29500"], {}),
        (
            ["--nodes=2", "--master=10.0.0.7:29500", "--interface=bond0,eth1", "--hca=mlx5_0:1"],
            {"GLOO_SOCKET_IFNAME": "bond0,eth1", "NCCL_SOCKET_IFNAME": "=bond0,eth1", "NCCL_IB_HCA": "=mlx5_0:1"},
        ),
    ],
)
def test_one_host_stays_on_loopback_and_several_go_where_they_are_told(
    arguments: list[str], environment: dict[str, str]
) -> None:
    assert collectives.network(collectives.parse(["--ranks=8", *arguments])) == environment


def test_one_size_alone_is_measured_where_smallest_and_largest_are_the_same() -> None:
    assert collectives.sizes(GIB, 8, GIB) == [GIB]


def stand_in_for_torch(folder: Path, body: str) -> dict[str, str]:
    """An environment in which ``import torch`` runs the body."""
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(body, encoding="utf-8")
    (folder / "torch/distributed.py").touch()
    (folder / "tmp").mkdir()
    return os.environ | {"PYTHONPATH": str(folder), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--backend=gloo", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        # A process that has ended and not been waited for is one no more.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    return False


RECORD = "import os, pathlib, sys, time\n(pathlib.Path(__file__).parents[1] / f'pid-{os.getpid()}').touch()\n"


def ranks_seen(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def test_a_rank_that_ends_ends_all_and_is_named_with_its_error(tmp_path: Path) -> None:
    body = f"{RECORD}if '--rank=1' in sys.argv:\n    raise RuntimeError('NCCL error: unhandled system error')\ntime.sleep(600)\n"
    begun = time.monotonic()
    done = run(stand_in_for_torch(tmp_path, body), "--ranks=3")
    assert done.returncode == 1
    assert done.stderr == "error: rank 1 ended with status 1: RuntimeError: NCCL error: unhandled system error\n"
    assert time.monotonic() - begun < 60
    assert not any(map(is_alive, ranks_seen(tmp_path)))
    assert not list((tmp_path / "tmp").iterdir())


def test_ranks_that_hang_are_ended_and_say_where_they_were(tmp_path: Path) -> None:
    body = f"{RECORD}print('all_reduce of 8589934592 bytes', file=sys.stderr, flush=True)\ntime.sleep(600)\n"
    done = run(stand_in_for_torch(tmp_path, body), "--ranks=2", "--timeout=3")
    assert done.returncode == 1
    assert "did not end in time; rank 0: all_reduce of 8589934592 bytes; rank 1: all_reduce of" in done.stderr
    assert len(ranks_seen(tmp_path)) == 2
    assert not any(map(is_alive, ranks_seen(tmp_path)))


@pytest.mark.parametrize("kill", ["terminate", "kill"])
def test_no_rank_outlives_the_parent(tmp_path: Path, kill: str) -> None:
    # A stand-in for prctl's caller would prove nothing: the ranks ask the kernel before they import torch.
    environment = stand_in_for_torch(tmp_path, f"{RECORD}time.sleep(600)\n")
    parent = subprocess.Popen([sys.executable, str(PROGRAM), "--ranks=2"], env=environment)
    until = time.monotonic() + 30
    while len(ranks_seen(tmp_path)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    getattr(parent, kill)()
    parent.wait(timeout=30)
    while any(map(is_alive, ranks_seen(tmp_path))) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(ranks_seen(tmp_path)) == 2
    assert not any(map(is_alive, ranks_seen(tmp_path)))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--ranks=0"],
        ["--ranks=2", "--max-bytes=0"],
        ["--ranks=2", "--backend=mpi"],
        ["--ranks=2", "--nodes=2"],
        ["--ranks=2", "--nodes=2", "--node-rank=2", "--master=10.0.0.7:29500"],
        ["--ranks=2", "--master=10.0.0.7:29500"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        collectives.main(arguments)
    assert end.value.code == 2
    assert "usage:" in capsys.readouterr().err


@needs_torch
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gloo_measures_and_returns_right_numbers(ranks: int) -> None:
    done = run(dict(os.environ), f"--ranks={ranks}", f"--max-bytes={MIB}", "--timeout=100")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["backend"], document["ranks"], document["device"]) == ("gloo", ranks, "cpu")
    assert {result["collective"] for result in document["results"]} == set(collectives.FACTORS)
    assert all(result["seconds_min"] <= result["seconds"] <= result["seconds_max"] for result in document["results"])
    assert all((result["busbw_gb_s"] is None) == (ranks == 1) for result in document["results"])


@needs_torch
def test_wrong_numbers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = importlib.import_module("torch")
    rank = collectives.Rank.__new__(collectives.Rank)
    monkeypatch.setattr(collectives, "CHUNK", 1000)
    rank.torch, rank.rank, rank.device = torch, 0, torch.device("cpu")
    rank.pattern = torch.arange(1000).remainder_(collectives.PERIOD).to(torch.float32)
    buffer = rank._buffer(4 * 2500)  # noqa: SLF001
    rank._fill(buffer, 5)  # noqa: SLF001
    rank._check("all_gather", 10_000, buffer, 5)  # noqa: SLF001
    buffer[2400] += 1
    with pytest.raises(collectives.CollectiveError, match="all_gather of 10000 bytes returned wrong numbers on rank 0"):
        rank._check("all_gather", 10_000, buffer, 5)  # noqa: SLF001
