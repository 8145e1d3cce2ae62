# SPDX-License-Identifier: Apache-2.0
"""vllm_member with two or three hosts on loopback, and a program in place of vLLM that ends when it is told to."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/vllm_service/files/vllm_member.py"

#: Ends with 0 where it is terminated, as vLLM does.
VLLM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("vllm runs", flush=True)
time.sleep(300)
"""

#: What the warm-up of the first host has published.
READY = {"since": "2026-11-25T04:00:00+00:00", "release": "r1", "pid": 4711, "tokens_per_second": 21.5}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replica:
    """Hosts 127.0.0.1, 127.0.0.2, ... and what each of them prints."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.hosts = [{"name": f"h{rank}", "address": f"127.0.0.{rank + 1}"} for rank in range(hosts)]
        self.running: list[subprocess.Popen[str]] = []

    def start(self, rank: int, *, vllm: str = VLLM, **changed: t.Any) -> subprocess.Popen[str]:
        replica = {
            "name": "pair",
            "rank": rank,
            "hosts": self.hosts,
            "port": self.port,
            "release": "r1",
            "configuration": "c1",
            "drain_seconds": 5,
        }
        path = self.folder / f"{rank}.json"
        path.write_text(json.dumps(replica | changed), encoding="utf-8")
        command = [sys.executable, str(PROGRAM), str(path), sys.executable, "-c", vllm]
        channel = self.folder / f"{rank}.notify"
        self.state(rank).parent.mkdir(exist_ok=True)
        process = subprocess.Popen(
            command,
            stdout=(self.folder / f"{rank}.log").open("a"),
            stderr=subprocess.STDOUT,
            text=True,
            env={"NOTIFY_SOCKET": str(channel), "PATH": "", "RUNTIME_DIRECTORY": str(self.state(rank).parent)},
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def state(self, rank: int) -> Path:
        return self.folder / f"{rank}.run" / "ready"

    def is_ready(self) -> None:
        """The warm-up of the first host has passed."""
        self.says(0, "vllm runs")
        new = self.state(0).with_suffix(".new")
        new.write_text(json.dumps(READY), encoding="utf-8")
        new.replace(self.state(0))
        self.says(1, "ready: h0 is")

    def log(self, rank: int) -> str:
        path = self.folder / f"{rank}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def says(self, rank: int, text: str, seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log(rank):
            assert time.monotonic() < deadline, f"rank {rank} does not say {text!r}: {self.log(rank)}"
            time.sleep(0.05)


@pytest.fixture
def replica(tmp_path: Path) -> t.Iterator[Replica]:
    made = Replica(tmp_path, 2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "1.notify"))
        yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_hosts_meet_in_any_order_and_the_second_is_ready_when_the_first_is(tmp_path: Path) -> None:
    made = Replica(tmp_path, 3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "1.notify"))
        channel.settimeout(15)
        others = [made.start(1), made.start(2)]
        time.sleep(1.5)
        assert "vllm runs" not in made.log(1) + made.log(2)
        first = made.start(0)
        try:
            made.says(1, "met: h0, h1, h2; rank 1 of 3")
            assert "ready" not in made.log(1)
            made.is_ready()
            assert channel.recv(64) == b"READY=1"
            assert json.loads(made.state(1).read_text()) == {name: READY[name] for name in ("since", "release")}
            assert made.state(1).stat().st_mode & 0o777 == 0o644
            # The one that goes takes all others with it.
            others[1].kill()
            assert first.wait(10) == 1
            assert others[0].wait(10) == 1
            made.says(0, "error: h2 has left the replica")
            made.says(1, "error: h0 has left the replica")
        finally:
            for process in made.running:
                process.kill()
                process.wait()


def test_a_vllm_that_ends_ends_the_replica(replica: Replica) -> None:
    first = replica.start(0)
    second = replica.start(1, vllm="import time; time.sleep(1); raise SystemExit(7)")
    assert second.wait(15) == 7
    assert first.wait(10) == 1


def test_what_is_taken_from_the_first_is_taken_from_the_second_and_comes_back_with_it(replica: Replica) -> None:
    replica.start(0)
    replica.start(1)
    replica.is_ready()
    replica.state(0).unlink()
    replica.says(1, "not ready any more: neither is h0")
    assert not replica.state(1).exists()
    replica.is_ready()
    deadline = time.monotonic() + 10
    while not replica.state(1).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_main_process_that_the_watchdog_kills_ends_the_second(replica: Replica) -> None:
    first, second = replica.start(0), replica.start(1)
    replica.is_ready()
    first.kill()
    assert second.wait(10) == 1
    replica.says(1, "error: h0 has left the replica")


def test_a_stop_of_the_first_is_a_stop_that_the_second_takes_for_a_loss(replica: Replica) -> None:
    first, second = replica.start(0), replica.start(1)
    replica.is_ready()
    first.send_signal(signal.SIGTERM)
    assert first.wait(10) == 0
    assert second.wait(10) == 1


def test_a_stop_of_the_second_lets_the_first_finish(replica: Replica) -> None:
    first, second = replica.start(0), replica.start(1)
    replica.is_ready()
    second.send_signal(signal.SIGTERM)
    assert second.wait(10) == 0
    assert first.wait(10) == 1, "systemd has to start it again"
    replica.says(0, "h1 stops, and with it the replica: requests in flight finish")
    assert not replica.state(0).exists()
    assert "has left" not in replica.log(0)


def test_a_stop_while_waiting_is_no_failure(replica: Replica) -> None:
    for rank in (0, 1):
        process = replica.start(rank)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize(("field", "word"), [("release", "release"), ("configuration", "configuration")])
def test_hosts_that_differ_do_not_start_and_say_why(field: str, word: str, replica: Replica) -> None:
    replica.start(0)
    replica.start(1, **{field: "another"})
    replica.says(0, f"error: h1 has another {word} than h0 -> run the stage again on all hosts of the replica")
    replica.says(1, f"error: h0 refuses: h1 has another {word} than h0")
    assert "vllm runs" not in replica.log(0) + replica.log(1)


def test_a_stranger_is_turned_away_and_the_host_itself_is_let_in(replica: Replica) -> None:
    replica.start(0)
    deadline = time.monotonic() + 10
    while True:
        try:
            stranger = socket.create_connection(("127.0.0.1", replica.port), 5, ("127.0.0.9", 0))
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with stranger:
        stranger.sendall(b'{"rank": 1, "release": "r1", "configuration": "c1"}\n')
        assert b"is no host of this replica" in stranger.recv(4096)
    replica.start(1)
    replica.says(1, "met: h0, h1; rank 1 of 2")
