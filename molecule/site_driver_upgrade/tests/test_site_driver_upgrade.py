# SPDX-License-Identifier: Apache-2.0
"""The driver through the release file: upgrade, rollback with a GPU that dies on the way, and the rollback that completes it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
import typing as t
import urllib.error
import urllib.request

import pytest
from conftest import UNIT, Api, Run, describe, follows_release, play, shell

FIRST, NEXT = "580.173.02", "595.71.05"
HOSTS = ("h20-11", "h20-12")
MARK = "/var/lib/h20-fleet/out-of-service"
PAUSE = 0.25


@dataclasses.dataclass
class Watch:
    """Asks both hosts again and again; each sample is what /health said at a moment, by host."""

    samples: list[tuple[float, dict[str, bool]]] = dataclasses.field(default_factory=list)

    def ask(self) -> None:
        answers = {}
        for host in HOSTS:
            try:
                with urllib.request.urlopen(f"{Api(host).url}/health", timeout=5) as response:
                    answers[host] = response.status == 200
            except (OSError, urllib.error.URLError):
                answers[host] = False
        self.samples.append((time.monotonic(), answers))

    def seconds_away(self, host: str) -> float:
        """For how long the host did not serve."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum(after - before for (before, answers), (after, _) in pairs if not answers[host])

    @property
    def dark(self) -> list[tuple[float, dict[str, bool]]]:
        """The samples in which nobody served."""
        return [sample for sample in self.samples if not any(sample[1].values())]


@contextlib.contextmanager
def watched() -> t.Iterator[Watch]:
    """Watch both hosts until the block ends."""
    watch, over = Watch(), threading.Event()

    def work() -> None:
        while not over.is_set():
            watch.ask()
            over.wait(PAUSE)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def driver_stage(release: str) -> Run:
    """The stage on both hosts, one after the other."""
    variables = {"fleet_release": release, "fleet_serial": 1}
    return play("site", "--tags", "nvidia_driver", "--extra-vars", json.dumps(variables))


def boot(host: str) -> str:
    return shell(host, "stat --format=%Y /proc/1")


def mark(host: str) -> str:
    """Why the host is out of service, "" where it is in."""
    return shell(host, f"cat {MARK} 2>/dev/null || true")


@dataclasses.dataclass(frozen=True)
class Move:
    """A run over both hosts: how it ended, what was served meanwhile, and when each host booted before it."""

    run: Run
    watch: Watch
    boots: dict[str, str]

    @classmethod
    def to(cls, release: str) -> Move:
        boots = {host: boot(host) for host in HOSTS}
        with watched() as watch:
            run = driver_stage(release)
        return cls(run, watch, boots)


def holds(move: Move, version: str, moved: t.Iterable[str]) -> None:
    """Assert that both hosts have the driver and serve, and that one of them did all the time."""
    assert move.run.rc == 0, move.run.output
    assert move.watch.dark == []
    for host in HOSTS:
        follows_release(host, version)
        assert mark(host) == ""
        assert shell(host, f"systemctl is-active {UNIT}") == "active"
        assert Api(host).chat()
    for host in moved:
        assert boot(host) != move.boots[host], "another kernel module takes a reboot"
        assert move.watch.seconds_away(host) > 0, "the watch looked away, so it proves nothing"


def test_upgrade_moves_host_by_host_and_one_always_serves() -> None:
    for host in HOSTS:
        follows_release(host, FIRST)
        assert Api(host).chat()
    holds(Move.to("demo-next"), NEXT, moved=HOSTS)


def test_converged_hosts_are_left_alone() -> None:
    boots = {host: boot(host) for host in HOSTS}
    run = driver_stage("demo-next")
    assert run.rc == 0, run.output
    assert run.output.count("changed=0 ") == len(HOSTS), run.output
    assert {host: boot(host) for host in HOSTS} == boots


@pytest.fixture(scope="module")
def failed() -> t.Iterator[Move]:
    """The way back, on which a GPU of the first host is silent."""
    describe(HOSTS[0], "h20_141g_7_gpus")
    try:
        yield Move.to("demo")
    finally:
        describe(HOSTS[0], "h20_141g")


def test_host_that_fails_the_gate_stays_out_and_stops_the_batch(failed: Move) -> None:
    first, second = HOSTS
    assert failed.run.rc == 2, failed.run.output
    assert "7 of 8 GPUs answer" in failed.run.words
    assert mark(first) != ""
    assert shell(first, f"systemctl is-active {UNIT} || true") in {"inactive", "failed"}
    assert shell(first, f"systemctl start {UNIT} >/dev/null 2>&1 && echo started || true") == "", (
        "the mark keeps it away"
    )
    assert boot(second) == failed.boots[second], "the next batch must not begin"
    assert failed.watch.dark == []
    assert failed.watch.seconds_away(second) == 0
    follows_release(second, NEXT)
    assert mark(second) == ""
    assert Api(second).chat()


def test_rollback_after_the_mending_takes_both_back(failed: Move) -> None:
    assert failed.run.rc == 2
    describe(HOSTS[0], "h20_141g")
    holds(Move.to("demo"), FIRST, moved=HOSTS[1:])
