# SPDX-License-Identifier: Apache-2.0
"""Programs that serve beside this one, and end with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import typing as t
from pathlib import Path

#: Of the environment of this program, which holds tokens and proxies, a child gets no more than this.
ENVIRONMENT = ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
#: Where a distribution has servers, though an unprivileged user's PATH may lack it.
SERVERS = "/usr/sbin:/sbin"
#: Seconds that a child has to begin, or to do what it is told, and to end by itself.
PATIENCE, FAREWELL = 20, 5


class ChildError(Exception):
    """A child does not do its work; the text says why."""


def environment() -> dict[str, str]:
    """What a child sees of the environment."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return kept | {"PATH": f"{kept.get('PATH', os.defpath)}:{SERVERS}"}


class Child:
    """A program that listens on `port`. The kernel ends it when this one dies, in whatever way."""

    def __init__(self, arguments: t.Sequence[str], port: int) -> None:
        self._what = f"{arguments[0]} on port {port}"
        self._port = port
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *arguments],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def check(self) -> None:
        """Raise ChildError when it has ended."""
        if not self.alive:
            raise ChildError(
                f"{self._what} ended with code {self._process.returncode} -> see the journal for its own words"
            )

    def until(self, done: t.Callable[[], bool], what: str) -> None:
        """Return when something is done; ChildError, saying what was not, when the child ends or takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise ChildError(f"{self._what} {what}")
            time.sleep(0.02)

    def until_listening(self, own: str) -> None:
        """Return when it can be reached at the address `own` of this host, "" for any."""
        self.until(lambda: self._listens(own or "127.0.0.1"), "does not answer")

    def reread(self) -> None:
        """Let it read again what it read when it began."""
        self._process.send_signal(signal.SIGHUP)

    def _listens(self, address: str) -> bool:
        try:
            socket.create_connection((address, self._port), PATIENCE).close()
        except OSError:
            return False
        return self.alive

    def end(self) -> None:
        """Begin to end it."""
        self._process.terminate()

    def join(self) -> None:
        """Return when it is gone."""
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def end(children: t.Iterable[Child | None]) -> None:
    """End those that were started, all at the same time, and return when they are gone."""
    started = [child for child in children if child]
    for child in started:
        child.end()
    for child in started:
        child.join()


def point(link: Path, target: Path) -> None:
    """Let the symbolic link point to the target, from one moment to the next."""
    new = link.with_suffix(".new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
