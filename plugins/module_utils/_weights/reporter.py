# SPDX-License-Identifier: Apache-2.0
"""Says how far the work is while it goes on: to a file, to the exchange of the site, to the journal."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import sys
import threading
import time
import typing as t

from .disk import GIB
from .job import Job
from .progress import Progress, write_json

#: Seconds between two states of the file, two reports to the site, two lines in the journal.
WRITE, REPORT, LOG = 1.0, 5.0, 10.0
#: The rate is that of so many of the last states.
WINDOW = 20


class Reporter:
    """Asks `state` what changed (fields of Progress) and passes all of it on, until the block that it is used for ends."""

    def __init__(
        self, job: Job, total: int, state: t.Callable[[], dict[str, t.Any]], report: t.Callable[[Progress], None]
    ) -> None:
        self._progress = Progress(job.host, total=total)
        self._path, self._state, self._report = job.progress, state, report
        self._history: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW)
        self._logged = ""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._every, args=work, daemon=True)
            for work in ((WRITE, self._write), (REPORT, self._tell), (LOG, self._log))
        ]

    def __enter__(self) -> Reporter:
        self._write()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self.now()

    def now(self) -> None:
        """Pass on at once what has changed."""
        self._write()
        self._tell()
        self._log()

    def _every(self, seconds: float, work: t.Callable[[], None]) -> None:
        while not self._done.wait(seconds):
            work()

    def _write(self) -> None:
        with self._lock:
            fresh = dataclasses.replace(self._progress, **self._state(), updated=time.time())
            self._history.append((time.monotonic(), fresh.bytes))
            fresh.rate = self._rate()
            self._progress = fresh
            # A full disk ends the work itself, with an error of its own.
            with contextlib.suppress(OSError):
                write_json(self._path, fresh.as_dict())

    def _rate(self) -> float:
        (start, before), (end, after) = self._history[0], self._history[-1]
        return max(0.0, (after - before) / (end - start)) if end > start else 0.0

    def _tell(self) -> None:
        self._report(self._progress)

    def _log(self) -> None:
        text = line(self._progress)
        if text != self._logged:
            say(text)
        self._logged = text


def say(text: str) -> None:
    """Write a line for the journal, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def line(progress: Progress) -> str:
    """One line for the journal."""
    share = progress.bytes / progress.total if progress.total else 1
    left = "" if progress.eta is None else f"  {progress.eta / 60:.0f} min left"
    told = "".join(f"  {text}" for text in (progress.source and f"from {progress.source}", progress.error) if text)
    return (
        f"{progress.phase}  {progress.bytes / GIB:.1f} / {progress.total / GIB:.1f} GiB  {share:.0%}"
        f"  {progress.rate / 1024**2:.0f} MiB/s{left}{told}"
    )
