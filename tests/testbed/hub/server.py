#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model hub that speaks the Hugging Face protocol, from the standard library alone.

    server.py --root DIR [--port 80]        DIR as repository.py writes it; it is read anew for every request

Served: /api/models/{repo}[/revision/{rev}], /api/models/{repo}/refs, /api/models/{repo}/tree/{rev}[/path] in pages, and /{repo}/resolve/{rev}/{path}
with ranges. Large files are redirected to a signed address under /cdn/ that expires, as the real hub does. The real one is on another host: with
`--cdn http://cdn.hub.test`, another name for this server, it is here too, and a client that must not send its token there can be seen to keep it.

What goes wrong in the world is set at run time. `POST /_testbed/faults` takes {pattern: kind} or {pattern: {"kind": ..., ...}}, the pattern a shell
pattern for the path of the address; `GET` shows what is set, `DELETE` clears it and lets go of every request that hangs.

    corrupt   the last byte is wrong; the size is right            429, 503   refused; "retry_after" (seconds, default 1) is announced
    truncate  half of the bytes, then the connection is closed     missing    404, as if the repository had no such entry
    hang      half of the bytes, then silence                      silent     no answer at all

`corrupt`, `truncate` and `hang` strike where content flows, not at redirects: `*model-00002*` is enough. "count" ends a fault after so many times,
"seconds" (default 600) ends a silence. `GET /_testbed/stats` counts requests and bytes of content by path, `DELETE` starts anew; `/_testbed/health`.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import hmac
import json
import secrets
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

CHUNK = 1 << 20
PAGE, PAGE_EXPANDED = 1000, 50  # lines of a tree in one answer: the real hub's numbers
EPOCH = "2026-01-01T00:00:00.000Z"  # the date of everything: nothing here depends on when it was built
CONTENT_FAULTS = frozenset({"corrupt", "truncate", "hang"})
REFUSALS = {"429": HTTPStatus.TOO_MANY_REQUESTS, "503": HTTPStatus.SERVICE_UNAVAILABLE, "missing": HTTPStatus.NOT_FOUND}
KINDS = CONTENT_FAULTS | REFUSALS.keys() | {"silent"}

Entry = dict[str, Any]


class RefusedError(Exception):
    """A request that the hub answers with an error: status, the hub's error code, message, further headers."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class UnsatisfiableError(Exception):
    """A range that begins behind the end of the file."""


@dataclass
class Fault:
    """One fault: where and what, how often still (None: until cleared), how long a silence or an announced wait lasts in seconds."""

    pattern: str
    kind: str
    count: int | None = None
    seconds: float = 600
    retry_after: int = 1
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def strikes(self, path: str, *, content: bool) -> bool:
        """Return whether a request for `path` meets this fault, while its content flows or before."""
        return self.count != 0 and (self.kind in CONTENT_FAULTS) is content and fnmatch.fnmatchcase(path, self.pattern)

    def public(self) -> dict[str, object]:
        """Return the fault as JSON shows it."""
        return {"kind": self.kind, "count": self.count, "seconds": self.seconds, "retry_after": self.retry_after}


class Faults:
    """The faults that are set, by pattern; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, Fault] = {}

    def set(self, wanted: dict[str, Any]) -> None:
        """Add or replace faults. Raise ValueError, with nothing set, where one is not understood."""
        faults = {}
        for pattern, value in wanted.items():
            options = value if isinstance(value, dict) else {"kind": value}
            unknown = options.keys() - {"kind", "count", "seconds", "retry_after"}
            kind = str(options.get("kind"))
            if kind not in KINDS or unknown:
                choices = f"kind is one of {', '.join(sorted(KINDS))}; options are count, seconds, retry_after"
                raise ValueError(f"{pattern}: {choices}; got {value!r}")
            faults[pattern] = Fault(**{**options, "pattern": pattern, "kind": kind})
        with self._lock:
            self._faults.update(faults)

    def clear(self) -> None:
        """Remove every fault and let go of the requests that hang."""
        with self._lock:
            for fault in self._faults.values():
                fault.released.set()
            self._faults.clear()

    def public(self) -> dict[str, object]:
        """Return what is set, as JSON shows it."""
        with self._lock:
            return {pattern: fault.public() for pattern, fault in self._faults.items()}

    def strike(self, path: str, *, content: bool) -> Fault | None:
        """Return the fault that strikes a request for `path` now, counted, or None. `content`: whether its bytes are about to flow."""
        with self._lock:
            fault = next((fault for fault in self._faults.values() if fault.strikes(path, content=content)), None)
            if fault and fault.count is not None:
                fault.count -= 1
            return fault


class Stats:
    """Requests and bytes of content by path; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, dict[str, int]] = defaultdict(lambda: {"requests": 0, "bytes": 0})

    def add(self, path: str, requests: int = 0, size: int = 0) -> None:
        """Count requests or bytes for `path`."""
        with self._lock:
            self._paths[path]["requests"] += requests
            self._paths[path]["bytes"] += size

    def clear(self) -> None:
        """Start anew."""
        with self._lock:
            self._paths.clear()

    def public(self) -> dict[str, object]:
        """Return the counts, as JSON shows them."""
        with self._lock:
            paths = {path: dict(counts) for path, counts in sorted(self._paths.items())}
        return {"bytes": sum(counts["bytes"] for counts in paths.values()), "paths": paths}


class Store:
    """The repositories under a root; nothing is kept in memory, so that a new revision is there at once."""

    def __init__(self, root: Path) -> None:
        self._models = root / "models"

    def repository(self, name: str, authorization: str | None) -> Entry:
        """Return repository.json of `name`, or raise RefusedError as the real hub does: it does not tell the missing from the private."""
        file = self._models / name / "repository.json"
        if any(part.startswith(".") for part in name.split("/")) or not file.is_file():
            if authorization is None:
                raise RefusedError(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
            raise RefusedError(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        repository: Entry = json.loads(file.read_bytes())
        if repository["token"] is None or authorization == f"Bearer {repository['token']}":
            return repository
        if authorization is None:
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "", "Invalid username or password.")
        raise RefusedError(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")

    def tree(self, repository: Entry, revision: str) -> tuple[str, list[Entry]]:
        """Return the commit that a branch or a commit id names, and its files. Raise RefusedError for one that is not there."""
        commit = repository["refs"].get(revision, revision)
        file = self._models / repository["id"] / f"{commit}.json"
        if not commit.isalnum() or not file.is_file():
            raise RefusedError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, json.loads(file.read_bytes())

    def file(self, repository: Entry, commit: str, entry: Entry) -> Path:
        """Return where the content of a tree's entry lies."""
        return self._models / str(repository["id"]) / commit / str(entry["path"])


def find_entry(entries: list[Entry], path: str) -> Entry:
    """Return the file `path` of a tree, or raise RefusedError."""
    for entry in entries:
        if entry["path"] == path:
            return entry
    raise RefusedError(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")


def list_folder(entries: list[Entry], folder: str, *, recursive: bool) -> list[Entry]:
    """Return the lines of `folder` ("" for the root): its files and folders, or all that lies below. Raise RefusedError where there is none."""
    prefix = f"{folder}/" if folder else ""
    inside = [entry for entry in entries if entry["path"].startswith(prefix)]
    if not inside:
        raise RefusedError(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
    lines: dict[str, Entry] = {}
    for entry in inside:
        parts = entry["path"].removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            if recursive or depth == 1:
                path = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
                lines.setdefault(path, {"type": "directory", "oid": oid, "size": 0, "path": path})
        if recursive or len(parts) == 1:
            lines[entry["path"]] = entry
    return list(lines.values())


def expand(entry: Entry) -> Entry:
    """Return an entry with what `expand` adds: the last commit and the security scan."""
    scan = {"status": "safe"}
    security = {"status": "safe", "avScan": scan, "pickleImportScan": scan, "jFrogScan": scan, "protectAiScan": scan}
    commit = {"id": entry["oid"], "title": "Upload", "date": EPOCH}
    return {**entry, "lastCommit": commit, "securityFileStatus": security}


def describe(repository: Entry, commit: str, entries: list[Entry], *, blobs: bool) -> Entry:
    """Return the answer of /api/models/{repo}: the commit and the names of its files, with `blobs` their sizes and hashes as well."""
    siblings = []
    for entry in entries:
        sibling: Entry = {"rfilename": entry["path"]}
        if blobs:
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                lfs = entry["lfs"]
                sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        siblings.append(sibling)
    name = repository["id"]
    return {
        "_id": commit[:24],
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": commit,
        "lastModified": EPOCH,
        "createdAt": EPOCH,
        "private": repository["token"] is not None,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": siblings,
        "usedStorage": sum(entry["size"] for entry in entries),
    }


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first byte and end (exclusive) of a Range header, None for the whole. Several ranges at once get the whole, which HTTP allows.

    Raise UnsatisfiableError where the range begins behind the end.
    """
    unit, _, ranges = (header or "").partition("=")
    first, dash, last = ranges.strip().partition("-")
    if unit != "bytes" or not dash or not (first + last).isdigit():
        return None
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    if first and last and int(last) < int(first):
        return None
    if start >= size or start >= end:
        raise UnsatisfiableError
    return start, end


class HubServer(ThreadingHTTPServer):
    """The server and what its threads share. More than `threads` connections at once wait their turn."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], root: Path, threads: int = 128, link_seconds: int = 3600, cdn: str = ""
    ) -> None:
        super().__init__(address, Handler)
        self.store = Store(root)
        self.faults = Faults()
        self.stats = Stats()
        self.link_seconds = link_seconds
        self.cdn = cdn.rstrip("/")
        self._key = secrets.token_bytes(32)
        self._slots = threading.BoundedSemaphore(threads)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection as soon as a slot is free."""
        self._slots.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then free its slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def sign(self, path: str, expires: str) -> str:
        """Return the signature of an address that is good until `expires` (Unix time)."""
        digest = hmac.digest(self._key, f"{path}\n{expires}".encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "testbed-hub"
    timeout = 30  # an idle connection does not keep its thread
    server: HubServer

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer()

    def do_POST(self) -> None:
        """Set faults."""
        self._answer()

    def do_DELETE(self) -> None:
        """Clear faults or statistics."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Write one line a request to standard output."""
        print(self.address_string(), format % args, flush=True)

    def _answer(self) -> None:
        """Route the request; turn what is refused into the hub's error answer."""
        split = urlsplit(self.path)
        self.route = unquote(split.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        try:
            if parts[0] == "_testbed":
                self._control(parts[1:])
            else:
                self.server.stats.add(self.route, requests=1)
                if not self._struck():
                    self._hub(parts)
        except RefusedError as refusal:
            self._json({"error": str(refusal)}, refusal.status, refusal.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _struck(self) -> bool:
        """Apply a fault that comes before any content. Return whether the request is over."""
        fault = self.server.faults.strike(self.route, content=False)
        if fault is None:
            return False
        if fault.kind == "silent":
            fault.released.wait(fault.seconds)
            self.close_connection = True
            return True
        status = REFUSALS[fault.kind]
        if status is HTTPStatus.NOT_FOUND:
            raise RefusedError(status, "EntryNotFound", "Entry not found")
        raise RefusedError(status, "", status.phrase, {"Retry-After": str(fault.retry_after)})

    def _control(self, parts: list[str]) -> None:
        """Serve /_testbed/: health, stats, faults."""
        shown: Faults | Stats
        match (self.command, parts):
            case ("GET" | "HEAD", ["health"]):
                self._json({"status": "ok"})
                return
            case ("GET" | "DELETE", ["stats"]):
                shown = self.server.stats
            case ("GET" | "DELETE" | "POST", ["faults"]):
                shown = self.server.faults
            case _:
                raise RefusedError(HTTPStatus.NOT_FOUND, "", "No such control")
        if self.command == "DELETE":
            shown.clear()
        elif self.command == "POST":
            self._set_faults()
        self._json(shown.public())

    def _set_faults(self) -> None:
        """Take faults from the body of the request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.server.faults.set(dict(json.loads(body)))
        except (ValueError, TypeError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "", str(error)) from error

    def _hub(self, parts: list[str]) -> None:
        """Serve the hub's own addresses."""
        if self.command not in {"GET", "HEAD"}:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "", "Only GET and HEAD", {"Connection": "close"})
        match parts:
            case ["api", "models", org, name]:
                self._describe(f"{org}/{name}", "main")
            case ["api", "models", org, name, "revision", revision]:
                self._describe(f"{org}/{name}", revision)
            case ["api", "models", org, name, "refs"]:
                refs = self._repository(f"{org}/{name}")["refs"]
                branches = [
                    {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit} for ref, commit in refs.items()
                ]
                self._json({"branches": branches, "tags": [], "converts": [], "pullRequests": []})
            case ["api", "models", org, name, "tree", revision, *path]:
                self._tree(f"{org}/{name}", revision, "/".join(path))
            case ["cdn", org, name, revision, *path]:
                self._cdn(f"{org}/{name}", revision, "/".join(path))
            case [org, name, "resolve", revision, *path]:
                self._resolve(f"{org}/{name}", revision, "/".join(path))
            case _:
                raise RefusedError(HTTPStatus.NOT_FOUND, "", "Sorry, we can't find the page you are looking for.")

    def _repository(self, name: str) -> Entry:
        """Return repository.json of a repository that this request may see."""
        return self.server.store.repository(name, self.headers.get("Authorization"))

    def _describe(self, name: str, revision: str) -> None:
        """Serve what a repository is."""
        repository = self._repository(name)
        commit, entries = self.server.store.tree(repository, revision)
        self._json(describe(repository, commit, entries, blobs=self._flag("blobs")))

    def _tree(self, name: str, revision: str, folder: str) -> None:
        """Serve a page of a folder's lines; a `Link` header leads to the next page."""
        commit, entries = self.server.store.tree(self._repository(name), revision)
        lines = list_folder(entries, folder, recursive=self._flag("recursive"))
        page = PAGE_EXPANDED if self._flag("expand") else PAGE
        page = min(page, self._number("limit", page))
        start = self._number("cursor", 0)
        headers = {"X-Repo-Commit": commit}
        if start + page < len(lines):
            following = urlencode({**self.query, "cursor": start + page})
            headers["Link"] = f'<{self._base()}{quote(self.route)}?{following}>; rel="next"'
        shown = lines[start : start + page]
        self._json([expand(line) for line in shown] if self._flag("expand") else shown, headers=headers)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        """Serve a small file, or lead to a large one as the hub does: by a signed address that expires."""
        repository = self._repository(name)
        commit, entries = self.server.store.tree(repository, revision)
        entry = find_entry(entries, path)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            self._file(self.server.store.file(repository, commit, entry), headers)
            return
        target = f"/cdn/{name}/{commit}/{path}"
        expires = str(int(time.time()) + self.server.link_seconds)
        query = urlencode({"Expires": expires, "Signature": self.server.sign(target, expires)})
        headers |= {
            "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
            "X-Linked-Size": str(entry["size"]),
            "Accept-Ranges": "bytes",
            "Location": f"{self.server.cdn or self._base()}{quote(target)}?{query}",
        }
        self._json({"location": headers["Location"]}, HTTPStatus.FOUND, headers)

    def _cdn(self, name: str, commit: str, path: str) -> None:
        """Serve a large file to whoever bears a signature that is good. It stands for the permission: a CDN knows no tokens."""
        expires = self.query.get("Expires", "")
        if not hmac.compare_digest(self.server.sign(self.route, expires), self.query.get("Signature", "")):
            raise RefusedError(HTTPStatus.FORBIDDEN, "", "The signature does not match")
        if int(expires) <= time.time():
            raise RefusedError(HTTPStatus.FORBIDDEN, "", "The link has expired")
        repository: Entry = {"id": name, "refs": {}}
        _, entries = self.server.store.tree(repository, commit)
        entry = find_entry(entries, path)
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{entry["lfs"]["oid"]}"',
        }  # for clients that follow within one host
        self._file(self.server.store.file(repository, commit, entry), headers)

    def _file(self, file: Path, headers: dict[str, str]) -> None:
        """Serve a file or the range of it that is asked for."""
        size = file.stat().st_size
        header = self.headers.get("Range")
        if self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            header = None
        try:
            span = parse_range(header, size)
        except UnsatisfiableError:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            raise RefusedError(status, "", "Range not satisfiable", {"Content-Range": f"bytes */{size}"}) from None
        start, end = span or (0, size)
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK, headers, end - start)
        if self.command == "GET":
            with file.open("rb") as stream:
                self._send(stream, start, end)

    def _send(self, stream: BinaryIO, start: int, end: int) -> None:
        """Send the bytes from `start` to `end` (exclusive), with the fault that strikes them."""
        fault = self.server.faults.strike(self.route, content=True)
        kind = fault.kind if fault else ""
        sent = 0
        for chunk in read_chunks(stream, start, start + (end - start) // 2 if kind in {"truncate", "hang"} else end):
            sent += len(chunk)
            last = kind == "corrupt" and start + sent == end
            self.wfile.write(chunk[:-1] + bytes([chunk[-1] ^ 0xFF]) if last else chunk)
            self.server.stats.add(self.route, size=len(chunk))
        if fault and sent < end - start:
            self.wfile.flush()
            if kind == "hang":
                fault.released.wait(fault.seconds)
            self.close_connection = True

    def _flag(self, name: str) -> bool:
        """Return whether a query parameter says yes."""
        return self.query.get(name, "").lower() in {"1", "true"}

    def _number(self, name: str, default: int) -> int:
        """Return a query parameter that is a number, or raise RefusedError."""
        text = self.query.get(name, str(default))
        if not text.isdigit():
            raise RefusedError(HTTPStatus.BAD_REQUEST, "", f"{name} is a number")
        return int(text)

    def _base(self) -> str:
        """Return the address under which the client reached the hub, a proxy in between included."""
        return f"{self.headers.get('X-Forwarded-Proto', 'http')}://{self.headers.get('Host', 'localhost')}"

    def _head(self, status: HTTPStatus, headers: dict[str, str], length: int) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _json(self, value: object, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        """Send a JSON answer."""
        body = json.dumps(value).encode()
        self._head(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)


def read_chunks(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` to `end` (exclusive) in pieces."""
    stream.seek(start)
    while start < end and (chunk := stream.read(min(CHUNK, end - start))):
        start += len(chunk)
        yield chunk


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder that holds models/")
    parser.add_argument("--address", default="", help="address to listen on (default: all)")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument(
        "--cdn", default="", help="origin of the addresses of large files (default: as the client came)"
    )
    parser.add_argument("--threads", type=int, default=128, help="connections served at once; more wait")
    parser.add_argument("--link-seconds", type=int, default=3600, help="how long the address of a large file is good")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # the first process of a container ends at neither by itself
        signal.signal(number, lambda *_: sys.exit(0))
    address = (options.address, options.port)
    with HubServer(address, options.root, options.threads, options.link_seconds, options.cdn) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
