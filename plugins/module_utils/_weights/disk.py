# SPDX-License-Identifier: Apache-2.0
"""The folder of a revision: where it grows, whether it has room, and how all of it becomes visible at once."""

from __future__ import annotations

import errno
import os
import shutil
import typing as t
from pathlib import Path, PurePosixPath

from .job import Job
from .manifest import File, Manifest
from .progress import write_json
from .transfer import PARTS

GIB = 1024**3
#: What the filesystem has to have free beyond the bytes that are missing.
MARGIN = 0.05
AGAIN = "then run the stage again: it resumes"
REMEDIES = {
    errno.ENOSPC: f"make room there, {AGAIN}",
    errno.EDQUOT: f"raise the quota there, {AGAIN}",
    errno.EROFS: f"mount it writable (dmesg says whether the disk failed), {AGAIN}",
    errno.EACCES: f"let the user of this program write there, {AGAIN}",
    errno.EPERM: f"let the user of this program own it, {AGAIN}",
    errno.EIO: f"replace the disk, {AGAIN}",
}


class RoomError(Exception):
    """The filesystem cannot hold the revision; the text says what it has and what it needs."""


def bytes_there(root: Path, file: File) -> int:
    """Bytes of a file that are below `root`, whole or growing; one with holes counts by its blocks."""
    return max(_bytes(root / file.path), _bytes(root / PARTS / file.path))


def _bytes(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return min(status.st_size, status.st_blocks * 512)


def free_bytes(path: Path) -> int:
    """Bytes that this program may still write to the filesystem of `path`, which need not be there yet."""
    filesystem = os.statvfs(next(place for place in (path, *path.parents) if place.exists()))
    return filesystem.f_bavail * filesystem.f_frsize


def grow(job: Job) -> None:
    """Make the folder where the revision grows, with what earlier tries have left. A visible revision that is torn becomes this: nothing may start from it."""
    partial = job.partial
    if job.destination.exists() and not partial.exists():
        job.destination.rename(partial)
    partial.mkdir(parents=True, exist_ok=True)


def check_room(root: Path, missing: t.Iterable[File]) -> None:
    """Raise RoomError where the missing bytes and the margin do not fit."""
    lacking = sum(file.size - bytes_there(root, file) for file in missing)
    needed, free = lacking * (1 + MARGIN), free_bytes(root)
    if needed > free:
        raise RoomError(
            f"the filesystem of {root} has {free / GIB:.1f} GiB free, and {needed / GIB:.1f} GiB are needed: {lacking} bytes are missing,"
            f" {MARGIN:.0%} is margin -> {REMEDIES[errno.ENOSPC]}"
        )


def reveal(job: Job, manifest: Manifest, root: Path, stamp: t.Mapping[str, t.Any]) -> None:
    """Give the proved revision its stamp, its modes and, when all of it is on the disk, its name."""
    for folder in (PARTS, ".cache"):  # of this program, of a hub's client before it
        _remove(root / folder)
    for file in manifest.files:
        (root / f"{file.path}.aria2").unlink(missing_ok=True)
        (root / file.path).chmod(0o644)
    for below in {folder for file in manifest.files for folder in PurePosixPath(file.path).parents}:
        (root / below).chmod(0o755)
    write_stamp(job, root, stamp)
    os.sync()
    unproved = job.destination.with_name(f"{job.destination.name}.unproved")
    _remove(unproved)
    if job.destination.exists():  # copied there by hand beside the growing one
        job.destination.rename(unproved)
    root.rename(job.destination)
    _remove(unproved)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def write_stamp(job: Job, root: Path, stamp: t.Mapping[str, t.Any]) -> None:
    """Write down what the files below `root` looked like when they were proved; a stamp inside of the revision goes along with it."""
    place = job.stamp
    if place.is_relative_to(job.destination):
        place = root / place.relative_to(job.destination)
    write_json(place, stamp)


def explained(error: OSError, place: Path) -> str:
    """An error of the disk with its file and what helps."""
    remedy = REMEDIES.get(error.errno or 0, f"see to it, {AGAIN}")
    return f"{error.filename or place}: {error.strerror or error} -> {remedy}"
