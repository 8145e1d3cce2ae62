# SPDX-License-Identifier: Apache-2.0
"""The whole of a host's work on one revision: what is there is proved, what is missing is fetched or received and proved, then all of it becomes visible.

It may end at any byte, by kill -9 or a power cut, and goes on from there: only what is proved gets the stamp, and only with the stamp the revision its name.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import threading
import typing as t
from pathlib import Path

from . import disk
from .job import Job
from .manifest import File, Manifest
from .progress import Progress
from .proof import altered, difference, differences, end, is_complete, look, processes
from .reporter import Reporter, say
from .spread import Spread, SpreadError
from .transfer import Transfer, TransferError

#: A file that came wrong so often from the other hosts will not come right.
REJECTIONS = 3
#: How many files that are wrong a message names.
NAMED = 5


class FetchError(Exception):
    """The revision cannot be made complete; the text says why and what to do."""


def fetch(job: Job) -> None:
    """Make the revision complete, and serve it to the site while others need it. Raises FetchError, with what was proved left for the next try."""
    with _explained(job):
        job.state.mkdir(parents=True, exist_ok=True)
        with _only_one(job), contextlib.closing(_Work(job, Manifest.load(job.manifest))) as work:
            work.run()


def inspect(job: Job) -> dict[str, t.Any]:
    """State of the revision: complete or not and why, bytes that are still to come, bytes that its filesystem has free. No content is read."""
    root = job.partial if job.partial.exists() else job.destination
    files = Manifest.load(job.manifest).files
    differing = altered(job)
    return {
        "complete": not differing,
        "altered": differing,
        "destination": str(job.destination),
        "missing_bytes": sum(max(0, file.size - disk.bytes_there(root, file)) for file in files),
        "free_bytes": disk.free_bytes(job.destination),
    }


def prove(job: Job) -> None:
    """Reread every byte of the visible revision; raises FetchError, and takes its stamp away, where it is not what was proved once."""
    wrong = differences(job.destination, Manifest.load(job.manifest).files)
    if wrong:
        job.stamp.unlink(missing_ok=True)
        raise FetchError(f"{job.destination}: {_some(wrong)} -> run the stage again: only what is wrong is fetched")


class _Nobody:
    """In place of Spread, for a host on its own."""

    def start(self, tree: Path) -> None: ...
    def offer(self, file: File) -> None: ...
    def reject(self, file: File) -> None: ...
    def moved(self, tree: Path) -> None: ...
    def report(self, progress: Progress) -> None: ...
    def linger(self) -> None: ...
    def close(self) -> None: ...

    def receive(self, *_: t.Any) -> None:
        raise SpreadError("nobody else has the files: the job names no site -> run the stage again")


class _Work:
    """One run of `fetch`."""

    def __init__(self, job: Job, manifest: Manifest) -> None:
        self._job, self._manifest = job, manifest
        self._stop = threading.Event()
        self._pool = processes()
        self._spread: Spread | _Nobody = Spread(job, manifest) if job.site else _Nobody()
        self._transfer = Transfer(manifest, job.sources, job.limits, job.partial, self._difference, self._stop)
        self._root = job.destination  # of the files, wherever they are now
        self._proved: dict[File, t.Any] = {}  # and what each looked like when its proof began
        self._rejections: collections.Counter[File] = collections.Counter()
        self._phase, self._error = "proving", ""  # no phase: told by what is missing
        self._mine = self._share()

    def close(self) -> None:
        """End every thread, process and listener."""
        self._stop.set()
        end(self._pool)
        self._spread.close()

    def run(self) -> None:
        with Reporter(self._job, self._manifest.bytes, self._state, self._spread.report) as reporter:
            try:
                with _explained(self._job):
                    self._complete()
            except FetchError as error:
                self._phase, self._error = "failed", str(error)
                raise
            self._phase = "complete"
            reporter.now()
            self._spread.linger()

    def _complete(self) -> None:
        """Make all files right and visible, and offer each to the site from the moment that it is proved."""
        job, files = self._job, self._manifest.files
        if is_complete(job):
            self._proved = dict.fromkeys(files)
            self._spread.start(self._root)
            self._gather(())
        elif job.distribution == "shared":
            self._spread.start(self._root)
            if wrong := self._prove_all(files):
                raise FetchError(
                    f"{job.destination}: {_some(wrong)} -> put it there whole: on a shared filesystem nothing is fetched"
                )
            disk.write_stamp(job, self._root, self._stamp())
            self._gather(())
        else:
            self._root = job.partial
            self._spread.start(self._root)  # before anything may fail, so that the others hear of it
            disk.grow(job)
            missing = self._prove_all(files)
            disk.check_room(self._root, missing)
            self._gather(tuple(missing))
            disk.reveal(job, self._manifest, self._root, self._stamp())
            self._root = job.destination
            self._spread.moved(self._root)
        say(f"{job.destination} is complete: {len(files)} files, {self._manifest.bytes} bytes proved")

    def _prove_all(self, files: t.Iterable[File]) -> dict[File, str]:
        """Prove files that are there; how the others differ."""
        before = {file: look(self._root / file.path, file) for file in files}
        wrong = differences(self._root, before, self._pool)
        self._proved |= {file: before[file] for file in before if file not in wrong}
        return wrong

    def _stamp(self) -> dict[str, t.Any]:
        """What the files looked like when they were proved. What somebody has touched since is proved again."""
        touched = [file for file, before in self._proved.items() if look(self._root / file.path, file) != before]
        if wrong := self._prove_all(touched):
            raise FetchError(
                f"{self._root}: {_some(wrong)}: it changed after it had been proved -> see who writes there, {disk.AGAIN}"
            )
        return {file.path: before for file, before in self._proved.items()}

    def _gather(self, missing: t.Sequence[File]) -> None:
        """Offer what is proved, and get what is missing: this host's part from the sources, the rest from the other hosts, both at the same time."""
        mine = [file for file in missing if file in self._mine]
        theirs = [file for file in missing if file not in self._mine]
        proved = sorted(self._proved, key=lambda file: file.path)
        for file in mine:
            (self._root / file.path).unlink(missing_ok=True)
        self._phase = ""
        with concurrent.futures.ThreadPoolExecutor() as threads:
            work = [threads.submit(self._transfer.run, mine, self._spread.offer), threads.submit(self._receive, theirs)]
            work += [threads.submit(self._spread.offer, file) for file in proved]
            try:
                for future in concurrent.futures.as_completed(work):
                    future.result()
            except BaseException:
                self._stop.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        self._phase = "proving"

    def _receive(self, files: t.Sequence[File]) -> None:
        """Get files from other hosts until each is proved."""
        while not self._stop.is_set() and (missing := [file for file in files if file not in self._proved]):
            self._receive_once(missing)

    def _receive_once(self, files: t.Sequence[File]) -> None:
        verdicts: list[concurrent.futures.Future[None]] = []
        with concurrent.futures.ThreadPoolExecutor() as threads:
            try:
                self._spread.receive(files, lambda file: verdicts.append(threads.submit(self._judge, file)), self._stop)
            finally:
                for verdict in verdicts:
                    verdict.result()

    def _judge(self, file: File) -> None:
        """Accept a file that arrived from another host, or have it sent again."""
        problem = self._difference(self._root / file.path, file)
        if problem is None:
            self._spread.offer(file)
            return
        self._rejections[file] += 1
        if self._rejections[file] == REJECTIONS:
            self._stop.set()
            raise FetchError(
                f"{problem}, {REJECTIONS} times as the other hosts sent it -> prove theirs: verify.yml -e model_verify_deep=true"
            )
        self._spread.reject(file)

    def _difference(self, path: Path, file: File) -> str | None:
        """How a file that has just come differs from the manifest, None where it is proved."""
        before = look(path, file)
        problem = self._pool.submit(difference, path, file).result()
        if problem is None:
            self._proved[file] = before
        return problem

    def _share(self) -> frozenset[File]:
        """The files that this host fetches from the sources: all where each fetches for itself, else an origin's part, of the largest as of the smallest."""
        site, files = self._job.site, sorted(self._manifest.files, key=lambda file: (-file.size, file.path))
        if self._job.distribution == "source" or site is None:
            return frozenset(files)
        if self._job.host not in site.origins:
            return frozenset()
        return frozenset(files[site.origins.index(self._job.host) :: len(site.origins)])

    def _state(self) -> dict[str, t.Any]:
        """What of Progress may have changed."""
        there = {
            file: file.size if file in self._proved else disk.bytes_there(self._root, file)
            for file in self._manifest.files
        }
        phase, error, source = self._phase, self._error, ""
        missing = {file for file in there if file not in self._proved}
        if not phase and missing & self._mine:
            source, error = self._transfer.source, self._transfer.trouble
            phase = "retrying" if error else "fetching"
        elif not phase and missing:
            source = "the site"
            phase = "receiving" if any(there[file] for file in there.keys() - self._mine) else "waiting"
        return {
            "phase": phase or "proving",
            "bytes": sum(there.values()),
            "origin": self._transfer.received,
            "source": source,
            "error": error,
        }


@contextlib.contextmanager
def _only_one(job: Job) -> t.Iterator[None]:
    """Keep a second run of the same job out: both would write the same files."""
    with (job.state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FetchError(
                f"another run fetches {job.destination} already -> wait for it: systemctl status 'model-fetch@*'"
            ) from error
        yield


@contextlib.contextmanager
def _explained(job: Job) -> t.Iterator[None]:
    """Raise FetchError for everything that may end the work."""
    try:
        yield
    except (TransferError, SpreadError, disk.RoomError) as error:
        raise FetchError(str(error)) from error
    except concurrent.futures.BrokenExecutor as error:
        raise FetchError(
            "a process that proves files was killed -> see whether memory is short (journalctl -k), then run the stage again"
        ) from error
    except OSError as error:
        raise FetchError(disk.explained(error, job.destination)) from error


def _some(wrong: t.Mapping[File, str]) -> str:
    """The first of the differences, by their files' names."""
    told = [wrong[file] for file in sorted(wrong, key=lambda file: file.path)]
    more = len(told) - NAMED
    return "; ".join(told[:NAMED]) + (f"; and {more} more" if more > 0 else "")
