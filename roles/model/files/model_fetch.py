#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fetch one revision of a model and prove every byte of it against its manifest.

    model_fetch.py fetch JOB     download what is missing, prove all, then make the revision visible by one rename
    model_fetch.py inspect JOB   print as JSON what is there, by size and modification time only (standard library alone)
    model_fetch.py prove JOB     reread every byte of a complete revision; exit 1 and name what differs

JOB is a JSON file ``{"manifest": path, "destination": path, "source": kind, "endpoint": URL, "workers": count, "timeout":
seconds}``. A source is of the kind ``hub`` (Hugging Face compatible, by its own client; a token for a gated repository comes
from the environment, HF_TOKEN) or ``mirror`` (a tree of plain files over HTTP). Lines go to the journal; a failure ends in one
line ``error: ...``.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import typing as t
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

STAMP = ".h20-fleet-manifest.json"
ATTEMPTS = 3
BLOCK = 16 * 1024 * 1024
PROGRESS_SECONDS = 10
GIB = 1024**3


class FetchError(Exception):
    """The revision cannot be made complete; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of the manifest; ``algorithm`` is sha256, or git-sha1 for the small files that a hub keeps in git."""

    path: str
    size: int
    algorithm: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Job:
    repo: str
    revision: str
    files: tuple[File, ...]
    destination: Path
    source: str
    endpoint: str
    workers: int
    timeout: int

    @property
    def partial(self) -> Path:
        """Where the revision grows until all of it is proved; on the same filesystem as the destination."""
        return self.destination.with_name(f"{self.destination.name}.partial")

    @classmethod
    def load(cls, path: Path) -> Job:
        job = json.loads(path.read_text(encoding="utf-8"))
        manifest = json.loads(Path(job["manifest"]).read_text(encoding="utf-8"))
        files = tuple(File(**file) for file in manifest["files"])
        for file in files:
            if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
                raise FetchError(f"the manifest {job['manifest']} names a path outside the revision: {file.path}")
        source, timeout = job.get("source", "hub"), job.get("timeout", 30)
        if source not in SOURCES:
            raise FetchError(f"{path} names a source {source}; known are {', '.join(SOURCES)} -> run the stage again")
        known = (manifest["repo"], manifest["revision"], files, Path(job["destination"]))
        return cls(*known, source, job["endpoint"], job["workers"], timeout)


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content, read in blocks."""
    blob = b"blob %d\0" % path.stat().st_size
    state = hashlib.sha1(blob, usedforsecurity=False) if algorithm == "git-sha1" else hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def difference(root: Path, file: File) -> str | None:
    """How the file below ``root`` differs from the manifest, None where it does not."""
    path = root / file.path
    if not path.is_file():
        return f"{file.path} is missing"
    if path.stat().st_size != file.size:
        return f"{file.path} has {path.stat().st_size} bytes, the manifest says {file.size}"
    actual = digest(path, file.algorithm)
    return (
        None if actual == file.digest else f"{file.path} has {file.algorithm} {actual}, the manifest says {file.digest}"
    )


def differences(root: Path, files: t.Sequence[File]) -> dict[File, str]:
    """All files that differ. Each is read by a process of its own: one core hashes slower than a disk reads."""
    with concurrent.futures.ProcessPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        found = pool.map(difference, [root] * len(files), files)
        return {file: text for file, text in zip(files, found, strict=True) if text}


def stamp_of(root: Path, files: t.Sequence[File]) -> dict[str, t.Any]:
    """What the proved files look like from outside: digest, inode, size and modification time in nanoseconds of each."""
    status = {file: (root / file.path).stat() for file in files}
    return {file.path: [file.digest, entry.st_ino, entry.st_size, entry.st_mtime_ns] for file, entry in status.items()}


def is_complete(job: Job) -> bool:
    """Whether the visible revision is the proved one, judged by its stamp: no byte of the weights is read."""
    try:
        stamp = json.loads((job.destination / STAMP).read_text(encoding="utf-8"))
        return bool(stamp == stamp_of(job.destination, job.files))
    except (OSError, ValueError):
        return False


def inspect(job: Job) -> dict[str, t.Any]:
    """State of the revision: complete or not, bytes that are still to come, bytes that its filesystem has free."""
    root = job.partial if job.partial.exists() else job.destination
    present = {file for file in job.files if _size(root / file.path) == file.size}
    parent = next(path for path in (job.destination, *job.destination.parents) if path.exists())
    filesystem = os.statvfs(parent)
    return {
        "complete": is_complete(job),
        "destination": str(job.destination),
        "missing_bytes": sum(file.size for file in job.files if file not in present),
        "free_bytes": filesystem.f_bavail * filesystem.f_frsize,
    }


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def fetch(job: Job) -> None:
    """Make the revision complete, or raise FetchError and leave what was proved for the next try."""
    if is_complete(job):
        print(f"{job.destination} is complete", flush=True)
        return
    if job.destination.exists() and not job.partial.exists():
        # It is torn, so nothing may start from it; its good files are kept and proved again.
        job.destination.rename(job.partial)
        (job.partial / STAMP).unlink(missing_ok=True)
    job.partial.mkdir(parents=True, exist_ok=True)
    wrong = differences(job.partial, job.files)
    for _attempt in range(ATTEMPTS):
        if not wrong:
            break
        for file in wrong:
            _forget(job.partial, file)
        download(job, list(wrong))
        wrong = differences(job.partial, list(wrong))
    if wrong:
        raise FetchError(
            f"{job.repo}@{job.revision[:12]}: {'; '.join(wrong.values())} after {ATTEMPTS} downloads from {job.endpoint}"
            " -> the source serves other bytes than the manifest names: "
            f"{SOURCES[job.source].remedy}, then run the stage again"
        )
    shutil.rmtree(job.partial / ".cache", ignore_errors=True)
    for path in (job.partial, *job.partial.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (job.partial / STAMP).write_text(json.dumps(stamp_of(job.partial, job.files)), encoding="utf-8")
    os.sync()
    unproved = job.destination.with_name(f"{job.destination.name}.unproved")
    if (
        job.destination.exists()
    ):  # copied there by hand beside the partial folder; all of it has been proved or fetched again by now
        job.destination.rename(unproved)
    job.partial.rename(job.destination)
    if unproved.exists():
        shutil.rmtree(unproved)
    print(
        f"{job.destination} is complete: {len(job.files)} files, {sum(file.size for file in job.files)} bytes proved",
        flush=True,
    )


def _forget(root: Path, file: File) -> None:
    """Remove a wrong file and the client's note that it had been fetched, so that the client asks for it again."""
    (root / file.path).unlink(missing_ok=True)
    (root / ".cache/huggingface/download" / f"{file.path}.metadata").unlink(missing_ok=True)


def download(job: Job, files: t.Sequence[File]) -> None:
    """Fetch ``files`` from the job's source into the partial folder; what was cut off before goes on where it stood."""
    total = sum(file.size for file in files)
    print(f"{job.repo}@{job.revision[:12]}: {len(files)} files, {total / GIB:.3f} GiB from {job.endpoint}", flush=True)
    done = threading.Event()
    watcher = threading.Thread(target=_report, args=(job, total, done), daemon=True)
    watcher.start()
    try:
        SOURCES[job.source].fetch(job, files)
    except FetchError as error:
        raise FetchError(f"{job.repo}@{job.revision[:12]}: {error}") from error
    finally:
        done.set()
        watcher.join()


def from_hub(job: Job, files: t.Sequence[File]) -> None:
    """Fetch by the hub's own client."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (of the release's environment; the other verbs do without it)

    try:
        snapshot_download(
            job.repo,
            revision=job.revision,
            endpoint=job.endpoint,
            local_dir=job.partial,
            allow_patterns=[file.path for file in files],
            max_workers=job.workers,
        )
    except Exception as error:  # the client raises errors of several HTTP libraries; each means the same here
        reason = str(error).splitlines()[0]
        raise FetchError(
            f"{job.endpoint} failed: {type(error).__name__}: {reason} -> run the stage again: it resumes"
        ) from error


def from_mirror(job: Job, files: t.Sequence[File]) -> None:
    """Fetch plain files, ``<endpoint>/<repo>/<revision>/<path>``, several at a time. The first failure stops the rest at its next block."""
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(max_workers=job.workers) as pool:
        pending = [pool.submit(_fetch_plain, job, file, stop) for file in files]
        try:
            for future in concurrent.futures.as_completed(pending):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _fetch_plain(job: Job, file: File, stop: threading.Event) -> None:
    """Fetch one file beside its place, and move it there when all bytes have come. A connection that dies is asked again while bytes still come."""
    url = f"{job.endpoint.rstrip('/')}/{job.repo}/{job.revision}/{quote(file.path)}"
    part = job.partial / ".cache/mirror" / f"{file.path}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    if _size(part) > file.size:
        part.unlink()
    failures = 0
    while (before := max(_size(part), 0)) < file.size or not part.exists():
        try:
            _fetch_rest(url, part, before, file.size, job.timeout, stop)
            reason = "the connection ends early"
        except (URLError, OSError, HTTPException) as error:
            reason = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        if stop.is_set():
            return
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise FetchError(
                f"{url} failed {ATTEMPTS} times at byte {before} of {file.size}: {reason} -> check that the mirror serves, then run the stage again: it resumes"
            )
    target = job.partial / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def _fetch_rest(url: str, part: Path, start: int, size: int, timeout: int, stop: threading.Event) -> None:
    """Append to ``part`` what follows byte ``start``, as far as it comes; FetchError where another request cannot help."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        with error:
            if error.code >= 500 or error.code == 429:
                raise
            what = "has no such file" if error.code in (404, 410) else "has a shorter file" if error.code == 416 else ""
            raise FetchError(
                f"{url}: the mirror {what or 'refuses'} (HTTP {error.code}) -> put the revision on the mirror again, whole"
            ) from error
    with response:
        if response.status != 206:  # a server without ranges sends all of it
            start = 0
        length = response.headers.get("Content-Length")
        if length is not None and start + int(length) != size:
            raise FetchError(
                f"{url} has {start + int(length)} bytes, the manifest says {size} -> put the revision on the mirror again, whole"
            )
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            while start < size and not stop.is_set() and (block := response.read1(min(BLOCK, size - start))):
                file.write(block)
                start += len(block)


@dataclasses.dataclass(frozen=True)
class Source:
    """A kind of source: how it fetches files of a job into the partial folder (raises FetchError), and what helps where it has other bytes."""

    fetch: t.Callable[[Job, t.Sequence[File]], None]
    remedy: str


SOURCES = {
    "hub": Source(from_hub, "use another source (fleet_hub_endpoint)"),
    "mirror": Source(from_mirror, "put the revision on the mirror again (fleet_model_mirror)"),
}


def _report(job: Job, total: int, done: threading.Event) -> None:
    """Print bytes, share, rate and time left every few seconds until ``done``."""
    start, before = time.monotonic(), _bytes(job.partial)
    while not done.wait(PROGRESS_SECONDS):
        fetched = _bytes(job.partial) - before
        rate = fetched / (time.monotonic() - start)
        left = f"{(total - fetched) / rate / 60:.0f} min left" if rate else "no bytes yet"
        print(
            f"{fetched / GIB:.1f} / {total / GIB:.1f} GiB  {fetched / total:.0%}  {rate / 1024**2:.0f} MiB/s  {left}",
            flush=True,
        )


def _bytes(root: Path) -> int:
    return sum(_size(path) for path in root.rglob("*") if path.is_file())


def prove(job: Job) -> None:
    """Reread every byte of the visible revision; raises FetchError."""
    wrong = differences(job.destination, job.files)
    if wrong:
        raise FetchError(
            f"{job.destination}: {'; '.join(wrong.values())} -> run the stage again: only what is wrong is fetched"
        )


def main(arguments: list[str]) -> int:
    try:
        verb, job = arguments[0], Job.load(Path(arguments[1]))
        if verb == "inspect":
            print(json.dumps(inspect(job)))
        else:
            {"fetch": fetch, "prove": prove}[verb](job)
    except (IndexError, KeyError):
        print(__doc__, file=sys.stderr)
        return 2
    except (FetchError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
