# SPDX-License-Identifier: Apache-2.0
"""The test bed: containers that boot systemd and play bare H20 hosts, and the services that stand for the world outside a site.

`python -m testbed up | down | clean | status` is the command line. This module holds what every part of it needs: where state lives, the one kind of
error a user sees, and long work that shows where it is.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".testbed"

LABEL = "h20.fleet.testbed"  # on everything the test bed makes: the fleet's name, "image" or "cache"
ROOT_LABEL = "h20.fleet.root"  # the working copy that a container or network belongs to
HEARTBEAT = 4.0  # seconds of silence that a user is asked to bear


class SetupError(Exception):
    """What stops the test bed, in one paragraph with its remedy."""


def say(subject: str, text: str) -> None:
    """Print one line of progress about `subject`."""
    print(f"{subject:<12} {text}", flush=True)


def last_lines(log: Path, count: int) -> str:
    """Return the last `count` lines of `log` that are not empty ("" where there are none)."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([line for line in lines if line.strip()][-count:])


def run(subject: str, command: Sequence[str], log: Path) -> None:
    """Run `command` with its output in `log`; every few seconds say how long it has taken and its latest line.

    Raises SetupError with the last lines of the log when the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    code = process.wait(HEARTBEAT)
                    break
                except subprocess.TimeoutExpired:
                    say(subject, f"{time.monotonic() - started:4.0f} s  {last_lines(log, 1)[:100]}")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise SetupError(
            f"`{shlex.join(command)[:160]}` ended with status {code}. Its last lines (all of them: {log}):\n{last_lines(log, 15)}"
        )


@contextmanager
def alone() -> Iterator[None]:
    """Run the body while no other command of this working copy's test bed runs; wait for its end first, and say so."""
    folder = os.open(Path(__file__).parent, os.O_RDONLY)  # locked itself: it is the one thing here that no verb removes
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("testbed", "waiting for another command of this test bed to end")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@dataclass
class Stopwatch:
    """Seconds that each stage took, in the order in which the stages ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as stage `name`."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    def summary(self) -> str:
        """Return all stages and their sum on one line."""
        stages = "   ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        return f"{stages}   total {sum(self.seconds.values()):.1f} s"
