# SPDX-License-Identifier: Apache-2.0
"""collective_bandwidth: when it measures, what it keeps, and what it refuses; a stand-in program prints the figures."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _collectives
from unit.plugins.support import MODULES, run_module, write_program

collective_bandwidth: Any = importlib.import_module(f"{MODULES}.collective_bandwidth")

GIB = 1024**3
PROGRAM = """\
with (HERE / "runs").open("a") as runs:
    print(ARGUMENTS, file=runs)
exec((HERE / "behaviour").read_text())
"""


def document(busbw: float | None, ranks: int = 8) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        {"collective": name, "bytes": size, "seconds": 0.02, "seconds_min": 0.016, "seconds_max": 0.025}
        | {"algbw_gb_s": 250.0, "busbw_gb_s": busbw if size == 8 * GIB else 1.0}
        for name in ("all_reduce", "all_gather", "all_to_all")
        for size in (2**17, 8 * GIB)
    ]
    named = {"torch": "2.13.0", "nccl": "2.29.7", "device": "NVIDIA H20-3e"}
    return {"backend": "nccl", "ranks": ranks, **named, "results": results, "wall_s": 40.0}


@dataclasses.dataclass
class Bench:
    """A host with a release, the program and systemd, and the module's parameters for it."""

    folder: Path
    params: dict[str, Any]

    def behave(self, busbw: float | None = None, *, code: str = "") -> None:
        (self.folder / "behaviour").write_text(code or f"print(json.dumps({document(busbw)!r}))", encoding="utf-8")

    def run(self, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        return run_module("collective_bandwidth", check=check, **(self.params | changes))

    @property
    def runs(self) -> list[str]:
        path = self.folder / "runs"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @property
    def kept(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(Path(self.params["state"]).read_text(encoding="utf-8"))
        return kept


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    packages = tmp_path / "venv/lib/python3.12/site-packages"
    for name in ("torch-2.13.0", "torchvision-0.28.0", "nvidia_nccl_cu13-2.29.7"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    (tmp_path / "venv/bin").mkdir()
    (tmp_path / "venv/bin/python").symlink_to(sys.executable)
    write_program(tmp_path / "collectives.py", PROGRAM)
    write_program(tmp_path / "bin/systemctl", "print((HERE / 'units').read_text(), end='')")
    (tmp_path / "bin/units").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    params = {
        "program": str(tmp_path / "collectives.py"),
        "python": str(tmp_path / "venv/bin/python"),
        "state": str(tmp_path / "var/lib/h20-fleet/nccl-bandwidth.json"),
        "release": "2026.11",
        "driver": "580.173.02",
        "gpus": [f"GPU-{number}" for number in range(8)],
        "settings": {"NCCL_DEBUG": "WARN"},
        "floor": 430.0,
        # Folders of a test are closed to others.
        "user": pwd.getpwuid(os.geteuid()).pw_name,
    }
    bench = Bench(tmp_path, params)
    bench.behave(471.3)
    return bench


def test_measures_once_and_keeps_it_with_what_it_is_valid_for(bench: Bench) -> None:
    first = bench.run()
    assert (first["changed"], first["status"], first["reason"]) == (True, "measured", "none was made on this host")
    assert first["allreduce"] == {
        "bytes": 8 * GIB,
        "busbw_gb_s": 471.3,
        "algbw_gb_s": 250.0,
        "spread_gb_s": [377.0, 589.1],
    }
    again = bench.run()
    assert (again["changed"], again["status"], again["reason"]) == (False, "valid", "")
    assert again["allreduce"] == first["allreduce"]
    assert bench.runs == ["['--ranks=8', '--backend=nccl', '--max-bytes=8589934592', '--timeout=600']"]
    assert (bench.kept["key"]["torch"], bench.kept["key"]["nccl"]) == ("2.13.0", "2.29.7")
    assert Path(bench.params["state"]).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"release": "2026.12"}, "release"),
        ({"driver": "595.71.05"}, "driver"),
        ({"gpus": [f"GPU-{number}" for number in range(1, 9)]}, "gpus"),
        ({"settings": {"NCCL_P2P_LEVEL": "LOC"}}, "settings"),
        ({"backend": "gloo"}, "backend"),
        ({"ranks": 2}, "ranks"),
        ({"max_bytes": GIB}, "max_bytes"),
    ],
)
def test_measures_again_after_a_change(bench: Bench, changes: dict[str, Any], named: str) -> None:
    bench.run()
    changed = bench.run(**changes)
    assert (changed["status"], changed["reason"]) == ("measured", f"{named} changed since the last measurement")
    assert bench.run(**changes)["status"] == "valid"


@pytest.mark.parametrize("package", ["torch-2.14.0", "nvidia_nccl_cu13-2.30.7"])
def test_measures_again_after_another_torch_or_nccl(bench: Bench, package: str) -> None:
    bench.run()
    packages = bench.folder / "venv/lib/python3.12/site-packages"
    (old,) = packages.glob(f"{package.split('-', maxsplit=1)[0]}-*")
    old.rename(packages / f"{package}.dist-info")
    assert bench.run()["status"] == "measured"


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"NCCL_DEBUG": "INFO"}},
        {"gpus": [f"GPU-{number}" for number in reversed(range(8))]},
        {"floor": 100.0},
    ],
)
def test_what_does_not_touch_the_bandwidth_is_no_change(bench: Bench, changes: dict[str, Any]) -> None:
    bench.run()
    assert bench.run(**changes)["status"] == "valid"


def test_refuses_what_is_below_the_floor_with_figures_and_remedy(bench: Bench) -> None:
    bench.behave(312.4)
    refused = bench.run()
    assert refused["failed"]
    assert refused["msg"].startswith(
        "all-reduce over 8 ranks (NVIDIA H20-3e, nccl 2.29.7) reaches 312.4 GB/s bus bandwidth at 8 GiB (249.9 to 390.5), the floor is 430 GB/s -> "
    )


def test_a_host_below_the_floor_is_measured_again_until_it_is_mended(bench: Bench) -> None:
    bench.behave(312.4)
    assert bench.run()["failed"]
    assert bench.run()["reason"] == "the last one is below the floor"
    bench.behave(465.0)
    mended = bench.run()
    assert (mended["status"], mended["allreduce"]["busbw_gb_s"]) == ("measured", 465.0)
    assert len(bench.runs) == 3


@pytest.mark.parametrize(("busbw", "floor"), [(430.0, 430.0), (0.5, 0.0), (None, 430.0)])
def test_at_the_floor_without_one_and_with_one_rank_is_good_enough(
    bench: Bench, busbw: float | None, floor: float
) -> None:
    bench.behave(busbw)
    assert bench.run(floor=floor)["status"] == "measured"


def test_always_measures_in_every_run(bench: Bench) -> None:
    assert [bench.run(measure="always")["reason"] for _ in range(2)] == ["asked for"] * 2
    assert len(bench.runs) == 2


def test_never_measures_nothing_and_judges_what_is_kept(bench: Bench) -> None:
    nothing = bench.run(measure="never")
    assert (nothing["status"], nothing["changed"], nothing["allreduce"]) == ("absent", False, None)
    bench.run()
    assert bench.run(measure="never")["status"] == "valid"
    assert bench.run(measure="never", floor=480.0)["failed"]
    stale = bench.run(measure="never", driver="595.71.05", floor=480.0)
    assert (stale["status"], stale["measurement"]) == ("outdated", None)
    assert len(bench.runs) == 1


def test_require_refuses_a_host_that_is_not_proved_and_bears_one_that_has_changed_since(bench: Bench) -> None:
    refused = bench.run(measure="require")
    assert refused["msg"] == ("no bandwidth is proved: none was made on this host -> run the stage again: --tags nccl")
    bench.run()
    assert bench.run(measure="require")["status"] == "valid"
    changed = bench.run(measure="require", driver="595.71.05")
    assert (changed["status"], changed.get("failed", False)) == ("outdated", False)
    assert changed["reason"] == "driver changed since the last measurement"


def test_does_not_disturb_a_replica(bench: Bench) -> None:
    (bench.folder / "bin/units").write_text(
        "vllm@deepseek-v3.service loaded active running vLLM replica deepseek-v3\n", encoding="utf-8"
    )
    put_off = bench.run()
    assert (put_off["status"], put_off["changed"], put_off["measurement"]) == ("put_off", False, None)
    assert "because vllm@deepseek-v3.service uses them -> stop it and run the stage again" in put_off["msg"]
    assert not bench.runs


def test_a_replica_does_not_hide_that_the_host_was_below_the_floor(bench: Bench) -> None:
    bench.behave(312.4)
    bench.run()
    (bench.folder / "bin/units").write_text("vllm@a.service loaded active running x\n", encoding="utf-8")
    assert "reaches 312.4 GB/s" in bench.run()["msg"]
    assert len(bench.runs) == 1


def test_check_mode_says_what_it_would_do(bench: Bench) -> None:
    due = bench.run(check=True)
    assert (due["changed"], due["status"], due["reason"]) == (True, "due", "none was made on this host")
    assert not bench.runs
    bench.run()
    assert bench.run(check=True)["changed"] is False


def test_stale_figures_do_not_stand_for_the_host(bench: Bench) -> None:
    bench.run()
    assert bench.run(check=True, driver="595.71.05")["measurement"] is None


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "sys.exit('progress\\nerror: all_to_all of 1048576 bytes returned wrong numbers on rank 3')",
            "cannot be measured: all_to_all of 1048576 bytes returned wrong numbers on rank 3 -> journalctl -k",
        ),
        ("sys.exit(1)", "cannot be measured: it said nothing -> "),
        ("print('no JSON')", "cannot be measured: Expecting value"),
    ],
)
def test_a_measurement_that_fails_is_refused_and_not_kept(bench: Bench, code: str, said: str) -> None:
    bench.behave(code=code)
    refused = bench.run()
    assert refused["failed"]
    assert said in refused["msg"]
    assert not Path(bench.params["state"]).exists()


def test_a_measurement_that_hangs_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_collectives, "GRACE", 0)
    bench.behave(code="import time; time.sleep(600)")
    assert "the collectives did not end within 1 s" in bench.run(timeout=1)["msg"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": {}, "measurement": {"results": []}}'])
def test_a_torn_file_counts_as_none(bench: Bench, text: str) -> None:
    state = Path(bench.params["state"])
    state.parent.mkdir(parents=True)
    state.write_text(text, encoding="utf-8")
    assert bench.run()["reason"] == "none was made on this host"


def test_settings_of_a_login_do_not_reach_the_program(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    bench.behave(
        code="import os; sys.exit('error: ' + ' '.join(name for name in os.environ if name.startswith('NCCL_')) + '.')"
    )
    assert "cannot be measured: . ->" in bench.run()["msg"]
