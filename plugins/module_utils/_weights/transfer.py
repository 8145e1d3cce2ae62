# SPDX-License-Identifier: Apache-2.0
"""Files from sources, driven by the manifest: resumed where they stood, from whichever source answers, and kept only when they are proved.

A source that says it will never give a file is out for that file. One that fails or falls silent rests, longer each time, while another goes on from the
same byte; one whose connection is cut after it gave something is asked again at once.
Bytes that turn out wrong are forgotten, and come once more from a single source from the first byte on, so that it is known who sent them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import random
import threading
import time
import typing as t
from pathlib import Path

from .job import Limits, Source
from .manifest import File, Manifest
from .sources import LaterError, OutError, SilentError, SourceError, asked, check, name

#: Folder below the revision where files grow.
PARTS = ".parts"
#: Seconds of the first rest of a source that stumbled, of the longest, and of the longest that a source may ask for itself.
FIRST_REST, LONGEST_REST, LONGEST_WISH = 1.0, 60.0, 900.0
#: How often in a row a source that has to give a whole file alone may stumble.
STUMBLES = 5
#: Seconds without a byte after which the sources count as silent.
QUIET = 5.0


class TransferError(Exception):
    """A file cannot be had; the text names each source and why."""


class Clock:
    """Time, for tests to replace."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Let time pass, less where `stop` is set."""
        stop.wait(seconds)


class Pace:
    """No more bytes a second than `rate` for all connections together, 0 for any number."""

    def __init__(self, rate: int, clock: Clock) -> None:
        self._rate, self._clock = rate, clock
        self._lock = threading.Lock()
        self._free = clock.now()

    def delay(self, count: int) -> float:
        """Seconds to wait before the next bytes when `count` have just come."""
        if not self._rate:
            return 0
        with self._lock:
            now = self._clock.now()
            self._free = max(self._free, now) + count / self._rate
            return self._free - now


@dataclasses.dataclass
class _Errand:
    """One file to fetch: where it grows, and what the sources did for it so far."""

    file: File
    part: Path
    out: dict[Source, str] = dataclasses.field(default_factory=dict)  # will not give it, and why
    stumbled: dict[Source, str] = dataclasses.field(default_factory=dict)  # how, the last time
    stumbles: int = 0  # in a row
    alone: Source | None = None  # has to give the whole file, for bytes were wrong before

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0


class Transfer:
    """Fetches files of one revision below `root`. `prove` tells how the file at a path differs from the manifest, None where it does not."""

    def __init__(
        self,
        manifest: Manifest,
        sources: t.Sequence[Source],
        limits: Limits,
        root: Path,
        prove: t.Callable[[Path, File], str | None],
        stop: threading.Event,
        clock: Clock | None = None,
    ) -> None:
        self._manifest, self._sources, self._limits, self._root = manifest, sources, limits, root
        self._prove, self._stop, self._clock = prove, stop, clock or Clock()
        self._pace = Pace(limits.download, self._clock)
        self._connections = threading.BoundedSemaphore(limits.connections)
        self._lock = threading.Lock()
        self._rests: dict[Source, float] = {}  # until when
        self._failures: collections.Counter[Source] = collections.Counter()  # in a row
        self._heard = self._clock.now()
        self._trouble = ""
        self.received = 0
        self.source = ""

    @property
    def trouble(self) -> str:
        """Why no bytes come just now, "" while they do."""
        return self._trouble if self._clock.now() - self._heard > QUIET else ""

    def run(self, files: t.Sequence[File], arrived: t.Callable[[File], None]) -> None:
        """Fetch and prove `files`, several at a time; `arrived` is called with each. Raises TransferError at the first that cannot be had.

        Ends early when `stop` is set.
        """
        try:
            for source in self._sources if files else ():
                check(source)
        except SourceError as error:
            raise TransferError(f"{error} -> correct fleet_model_sources, then run the stage again") from error
        self._heard = self._clock.now()
        # Twice as many threads as connections: while a file is proved, another may come.
        with concurrent.futures.ThreadPoolExecutor(2 * self._limits.connections) as threads:
            pending = [threads.submit(self._fetch, file, arrived) for file in files]
            try:
                for future in concurrent.futures.as_completed(pending):
                    future.result()
            except BaseException:
                self._stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch(self, file: File, arrived: t.Callable[[File], None]) -> None:
        errand = _Errand(file, self._root / PARTS / file.path)
        errand.part.parent.mkdir(parents=True, exist_ok=True)
        if errand.have > file.size:
            errand.part.unlink()
        while source := self._next(errand):
            if self._whole(errand, source) and self._kept(errand, source):
                arrived(file)
                return

    def _whole(self, errand: _Errand, source: Source) -> bool:
        """Whether all bytes are here after the source was asked for the rest of them."""
        before = errand.have
        try:
            self._draw(errand, source)
        except OutError as error:
            self._exclude(errand, source, str(error))
        except LaterError as error:
            smooth = errand.have > before and not isinstance(error, SilentError)
            self._postpone(errand, source, error, smooth=smooth)
        else:
            return not self._stop.is_set()
        return False

    def _next(self, errand: _Errand) -> Source | None:
        """The source to ask now: the first in order that does not rest. Waits while all do; None when the work is stopped."""
        while not self._stop.is_set():
            left = [source for source in self._sources if source not in errand.out]
            if not left:
                raise TransferError(
                    f"no source has {errand.file.path}: {_told(errand.out)} -> correct fleet_model_sources or the release's model.manifest,"
                    " then run the stage again: it resumes"
                )
            if errand.alone:
                left = [errand.alone]
            now = self._clock.now()
            until = {source: max(self._rests.get(source, now), now) for source in left}
            source = min(left, key=until.__getitem__)
            if until[source] == now:
                return source
            deadline = self._heard + self._limits.give_up
            if now >= deadline:
                raise TransferError(
                    f"no byte from any source for {now - self._heard:.0f} s; {errand.file.path}: {_told(errand.out | errand.stumbled)}"
                    " -> see to the network and the sources, then run the stage again: it resumes"
                )
            self._clock.wait(min(until[source], deadline) - now, self._stop)
        return None

    def _draw(self, errand: _Errand, source: Source) -> None:
        """Append to the part what the source gives of the rest. Raises OutError and LaterError, with what has come before kept."""
        file, have = errand.file, errand.have
        if have == file.size > 0:
            return
        with (
            self._connections,
            asked(source, self._manifest, file, have, self._limits.stall) as answer,
            errand.part.open("ab") as part,
        ):
            position = answer.start
            while not self._stop.is_set() and (block := answer.read()):
                # A server without ranges begins anew: what is here already is passed over.
                fresh = block[max(0, have - position) :]
                position += len(block)
                have += len(fresh)
                if have > file.size:
                    raise OutError(f"it has more bytes than the {file.size} that the manifest says")
                part.write(fresh)
                self._count(source, len(fresh))
                if delay := self._pace.delay(len(block)):
                    self._clock.wait(delay, self._stop)
        if self._stop.is_set():
            return
        if have < file.size:
            raise LaterError(f"the connection ends early, at byte {have} of {file.size}")
        self._failures[source] = 0

    def _count(self, source: Source, count: int) -> None:
        with self._lock:
            self.received += count
            self.source = name(source)
            self._heard, self._trouble = self._clock.now(), ""

    def _kept(self, errand: _Errand, source: Source) -> bool:
        """Move the file to its place if it is right; else forget its bytes, and ask this source alone for all of them, or no more."""
        problem = self._prove(errand.part, errand.file)
        if problem is None:
            target = self._root / errand.file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            errand.part.replace(target)
            return True
        if errand.alone == source:
            self._exclude(errand, source, problem)
        else:
            errand.part.unlink()
            errand.alone = source
        return False

    def _exclude(self, errand: _Errand, source: Source, reason: str) -> None:
        """Ask the source no more for this file; after wrong bytes, the next begins at the first byte."""
        errand.out[source] = reason
        if errand.alone:
            errand.part.unlink(missing_ok=True)
            errand.alone = next((source for source in self._sources if source not in errand.out), None)

    def _postpone(self, errand: _Errand, source: Source, error: LaterError, *, smooth: bool) -> None:
        """Ask the source again: at once where it gave something and did not fall silent, else when it has rested."""
        errand.stumbled[source] = str(error)
        errand.stumbles = 0 if smooth else errand.stumbles + 1
        with self._lock:
            self._trouble = f"{errand.file.path}: {name(source)}: {error}"
            if error.wait or not smooth:
                self._rest(source, error.wait)
        if errand.alone and errand.stumbles == STUMBLES:
            self._exclude(errand, source, str(error))

    def _rest(self, source: Source, wish: float) -> None:
        """Ask the source no more for as long as it wishes, or for longer each time. What fails while it rests already, had been asked before."""
        now = self._clock.now()
        doubled = FIRST_REST * 2 ** min(self._failures[source], 16)
        rest = min(LONGEST_REST, doubled) * random.uniform(0.5, 1)  # noqa: S311 (spreads the hosts, guards nothing)
        if self._rests.get(source, now) <= now:
            self._failures[source] += 1
        self._rests[source] = max(self._rests.get(source, now), now + rest, now + min(wish, LONGEST_WISH))


def _told(reasons: t.Mapping[Source, str]) -> str:
    return "; ".join(f"{name(source)}: {reason}" for source, reason in reasons.items())
