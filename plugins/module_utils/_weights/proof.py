# SPDX-License-Identifier: Apache-2.0
"""What is on the disk against what the manifest says: every byte by its digest, and what was proved before by its stamp."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import typing as t
from multiprocessing import resource_tracker
from pathlib import Path

from .job import Job
from .manifest import File, Manifest

#: Read at once: what a core's own cache holds, and the kernel reads ahead of it while it is hashed. Larger ones are slower in both respects.
BLOCK = 256 * 1024
#: A disk is read no faster by more, and a host that serves has other work to do.
MOST_PROCESSES = 16


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content, read in blocks."""
    state = hashlib.sha256()
    if algorithm == "git-sha1":
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    block = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            state.update(block[:count])
    return state.hexdigest()


def difference(path: Path, file: File) -> str | None:
    """How what lies at `path` differs from the manifest's `file`, None where it does not."""
    if not path.is_file():
        return f"{file.path} is missing"
    if path.stat().st_size != file.size:
        return f"{file.path} has {path.stat().st_size} bytes, the manifest says {file.size}"
    actual = digest(path, file.algorithm)
    if actual != file.digest:
        return f"{file.path} has {file.algorithm} {actual}, the manifest says {file.digest}"
    return None


def processes() -> concurrent.futures.ProcessPoolExecutor:
    """Processes that prove, one a core: one core hashes slower than a disk reads. Started anew, for a fork would inherit the locks of running threads."""
    count = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=_follow_parent)


def _follow_parent() -> None:
    """A process that proves ends with its parent, be it killed; signals to the group are the parent's business."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this is no process of a pool")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end(pool: concurrent.futures.Executor) -> None:
    """End the processes, and the one that minds their locks, which otherwise ends only after this one."""
    pool.shutdown(cancel_futures=True)
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined] # noqa: SLF001 (nothing else stops it)


def differences(
    root: Path, files: t.Iterable[File], pool: concurrent.futures.Executor | None = None
) -> dict[File, str]:
    """How the files below `root` differ from the manifest, by those that do; every byte is read, by a pool of processes."""
    if pool is None:
        with processes() as pool:
            return differences(root, files, pool)
    # The largest first, so that none is left alone at the end.
    ordered = sorted(files, key=lambda file: -file.size)
    found = pool.map(difference, [root / file.path for file in ordered], ordered)
    return {file: text for file, text in zip(ordered, found, strict=True) if text}


def look(path: Path, file: File) -> list[t.Any] | None:
    """What a file looks like from outside: digest that it has to have, inode, size and modification time in nanoseconds; None where it is missing."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [file.digest, status.st_ino, status.st_size, status.st_mtime_ns]


def stamp_of(root: Path, files: t.Iterable[File]) -> dict[str, t.Any]:
    """What the files below `root` look like, by their paths: the stamp, where they are proved."""
    return {file.path: look(root / file.path, file) for file in files}


def altered(job: Job) -> list[str]:
    """The files of the visible revision that are not as they were when they were proved, judged by its stamp; the revision itself where it has none.

    No content is read. Raises ManifestError.
    """
    now = stamp_of(job.destination, Manifest.load(job.manifest).files)
    try:
        proved = dict(json.loads(job.stamp.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return [str(job.destination)]
    return sorted(path for path in proved.keys() | now.keys() if now.get(path) is None or proved.get(path) != now[path])


def is_complete(job: Job) -> bool:
    """Whether the visible revision is the proved one, judged by its stamp. Raises ManifestError."""
    return not altered(job)
