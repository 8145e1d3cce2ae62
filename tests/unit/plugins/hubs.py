# SPDX-License-Identifier: Apache-2.0
"""What the tests of the modules that ask a hub share: the test bed's hub in a thread, with one revision of two repositories."""

from __future__ import annotations

import contextlib
import functools
import http.server
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testbed.hub import server
from testbed.hub.repository import write_repository
from unit.plugins.support import run_module

NAME, PRIVATE = "org/model", "org/private"
TOKEN = "token-of-a-test"  # noqa: S105 (opens a repository that lives for a test)
WEIGHTS = bytes(range(256)) * 40
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}\n', "sub/deep/notes.txt": b"notes\n"}
ABSENT = "0" * 40


def source(url: str, kind: str = "hub", **fields: str) -> dict[str, str]:
    """A source of a site."""
    return {"kind": kind, "url": url, **fields}


@contextlib.contextmanager
def serving(served: socketserver.BaseServer) -> Iterator[None]:
    """Serve from a thread of its own until the block ends."""
    with served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            served.shutdown()
            thread.join()


@dataclass
class Hub:
    """The hub, the revision that it has of both repositories, and a module that asks it: model_manifest writes ``path``."""

    served: server.HubServer
    revision: str
    path: Path

    def ask(self, *, check: bool = False, **params: Any) -> dict[str, Any]:
        standard = {"path": str(self.path), "sources": [source(self.endpoint)], "repo": NAME, "revision": self.revision}
        return run_module("model_manifest", check=check, **standard | params)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.served.server_address[1]}"

    @property
    def requests(self) -> int:
        paths = self.served.stats.public()["paths"]
        assert isinstance(paths, dict)
        return sum(counts["requests"] for counts in paths.values())


@contextlib.contextmanager
def running(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub with both repositories below ``folder``, until the block ends."""
    monkeypatch.setattr(server.Handler, "log_message", lambda *_: None)
    [revision] = write_repository(folder, NAME, [FILES])
    write_repository(folder, PRIVATE, [FILES], token=TOKEN)
    served = server.HubServer(("127.0.0.1", 0), folder)
    with serving(served):
        yield Hub(served, revision, folder / "manifest.json")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A mirror of plain files, as any web server is one."""

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def mirror(root: Path, handler: type[Quiet] = Quiet) -> Iterator[str]:
    """Serve ``root`` as plain files until the block ends; yields its URL."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(root)))
    served.daemon_threads = True
    with serving(served):
        yield f"http://127.0.0.1:{served.server_address[1]}"
