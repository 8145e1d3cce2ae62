# SPDX-License-Identifier: Apache-2.0
"""What the tests of the weights' program share: a small revision, the test bed's hub with every protocol, and time that passes only where it is waited for."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job, Limits, Source
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import File, Manifest
from ansible_collections.h20.fleet.plugins.module_utils._weights.transfer import Clock
from testbed.hub import server
from testbed.hub.repository import tree, write_repository
from unit.plugins.hubs import serving

NAME = "org/name"
LARGE = "model.safetensors"
WEIGHTS = bytes(range(256)) * 40
CONTENT = {
    "a name/with %20 and ü.txt": b"quoted\n",
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    LARGE: WEIGHTS,
    "sub/deep/notes.txt": b"notes\n",
}
STAMP = ".stamp.json"
#: Kinds of sources that the hub can be.
REMOTE = ("hub", "modelscope", "http", "s3")


def write(root: Path, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def contents(root: Path) -> dict[str, bytes]:
    """Every file below `root` but the stamp."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != STAMP
    }


def file_of(path: str, content: bytes) -> File:
    """A file as the manifest names it, by the digests that a hub's tree has."""
    [entry] = tree({path: content})
    algorithm, digest = ("sha256", entry["lfs"]["oid"]) if "lfs" in entry else ("git-sha1", entry["oid"])  # type: ignore[index]
    return File(path, len(content), algorithm, str(digest))


def manifest_of(content: dict[str, bytes], revision: str) -> Manifest:
    return Manifest(NAME, revision, tuple(file_of(path, content[path]) for path in sorted(content)))


def one_bit(path: Path) -> None:
    """Damage a file without changing what it looks like from outside, but for its time."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Skipped(Clock):
    """Time that passes at once where somebody waits for it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float, stop: threading.Event) -> None:
        if not stop.is_set():
            with self._lock:
                self.seconds += seconds


@dataclasses.dataclass
class Hub:
    """The test bed's hub with the revision, its large files redirected to another name of its own."""

    served: server.HubServer
    root: Path
    revision: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.served.server_address[1]}"

    @property
    def folder(self) -> Path:
        """Where it has the files."""
        return self.root / "models" / NAME / self.revision

    @property
    def manifest(self) -> Manifest:
        return manifest_of(CONTENT, self.revision)

    @property
    def stats(self) -> Any:
        return self.served.stats.public()

    def source(self, kind: str) -> Source:
        """The hub as a source of a kind."""
        urls = {"http": f"{self.url}/files", "s3": f"{self.url}/public/models", "path": str(self.root / "models")}
        return Source(kind, urls.get(kind, self.url))

    def asked(self, pattern: str) -> int:
        """How many requests came for the addresses that a shell pattern fits."""
        counted: dict[str, dict[str, int]] = self.stats["paths"]
        return sum(counts["requests"] for route, counts in counted.items() if fnmatch.fnmatchcase(route, pattern))


@contextlib.contextmanager
def running(root: Path, monkeypatch: pytest.MonkeyPatch, token: str | None = None) -> Iterator[Hub]:
    """A hub that has the revision below `root`, until the block ends."""
    monkeypatch.setattr(server.Handler, "log_message", lambda *_: None)
    [revision] = write_repository(root, NAME, [CONTENT], token=token)
    served = server.HubServer(("127.0.0.1", 0), root)
    served.cdn = f"http://localhost:{served.server_address[1]}"
    with serving(served):
        try:
            yield Hub(served, root, revision)
        finally:
            served.faults.clear()


@dataclasses.dataclass
class Place:
    """A host's folders and the job that is for it there."""

    root: Path
    manifest: Manifest
    sources: tuple[Source, ...]

    @property
    def destination(self) -> Path:
        return self.root / "models" / NAME / self.manifest.revision

    @property
    def path(self) -> Path:
        """The job's file."""
        return self.root / "job.json"

    def job(self, **changes: Any) -> Job:
        """The job as it is read from its file, written there first."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "manifest.json").write_text(self.manifest.text())
        content: dict[str, Any] = {
            "manifest": str(self.root / "manifest.json"),
            "destination": str(self.destination),
            "stamp": str(self.destination / STAMP),
            "state": str(self.root / "state"),
            "host": "h20-01",
            "distribution": "source",
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "limits": dataclasses.asdict(Limits(stall=0.3)),
        }
        self.path.write_text(json.dumps(content | changes))
        return Job.load(self.path)
