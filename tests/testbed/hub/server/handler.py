# SPDX-License-Identifier: Apache-2.0
"""The server, and one connection of it: which protocol answers, what strikes before, and how files and refusals are sent."""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from . import huggingface, modelscope, s3
from .content import Content, UnsatisfiableError, parse_range
from .faults import REFUSALS, SIGNED, Fault, Faults, Stage
from .stats import Stats
from .store import Entry, RefusedError, Store, find_entry


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
    route: str  # the path that is asked for, ModelScope's FilePath at its end: what faults and statistics go by
    query: dict[str, str]

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
        """Route the request; turn what is refused into an answer."""
        split = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        self.route = unquote(split.path) + (f"/{self.query['FilePath']}" if "FilePath" in self.query else "")
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        try:
            if parts[0] == "_testbed":
                self._control(parts[1:])
            else:
                self.server.stats.asked(self.route, self.client_address[0], leaked=self._leaks())
                if not self._struck():
                    self._serve(parts)
        except RefusedError as refusal:
            self._send(refusal.status, {"Content-Type": refusal.content_type, **refusal.headers}, refusal.body())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _leaks(self) -> bool:
        """Return whether the request bears a token to the CDN, though that is another host than the hub."""
        bears = "Authorization" in self.headers or "Cookie" in self.headers
        return bool(self.server.cdn) and self.route.startswith(SIGNED) and bears

    def _strike(self, stage: Stage) -> Fault | None:
        """Return the fault that strikes this request at `stage`, counted, or None."""
        return self.server.faults.strike(self.client_address[0], self.route, stage)

    def _struck(self) -> bool:
        """Apply a fault that comes instead of an answer. Return whether the request is over."""
        fault = self._strike(Stage.REFUSAL)
        if fault is None:
            return False
        if fault.kind == "silent":
            fault.released.wait(fault.seconds)
            self.close_connection = True
            return True
        status = REFUSALS[fault.kind]
        if fault.kind == "missing":
            raise RefusedError(status, "EntryNotFound", "Entry not found")
        if fault.kind == "expired":
            raise RefusedError(status, "", "The link has expired")
        self.server.stats.told_to_wait(self.route, self.client_address[0], fault.retry_after)
        raise RefusedError(status, "", status.phrase, {"Retry-After": str(fault.retry_after)})

    def _control(self, parts: list[str]) -> None:
        """Serve /_testbed/: health, stats, faults."""
        shown: Faults | Stats
        match (self.command, parts):
            case ("GET" | "HEAD", ["health"]):
                self.json({"status": "ok"})
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
        self.json(shown.public())

    def _set_faults(self) -> None:
        """Take faults from the body of the request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.server.faults.set(dict(json.loads(body)))
        except (ValueError, TypeError) as error:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "", str(error)) from error

    def _serve(self, parts: list[str]) -> None:
        """Let the protocol answer that the address belongs to."""
        if self.command not in {"GET", "HEAD"}:
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "", "Only GET and HEAD", {"Connection": "close"})
        match parts:
            case ["api", "v1", "models", *rest]:
                modelscope.answer(self, rest)
            case [s3.PRIVATE | s3.PUBLIC as bucket, *key]:
                s3.answer(self, bucket, key)
            case ["files", org, name, commit, *path]:
                self.plain(f"{org}/{name}", commit, "/".join(path))
            case ["cdn", org, name, commit, *path]:
                self._signed(f"{org}/{name}", commit, "/".join(path))
            case _:
                huggingface.answer(self, parts)

    def tree(self, repository: Entry, revision: str) -> tuple[str, list[Entry]]:
        """Return the commit and the files that a revision names to this request."""
        revised = self._strike(Stage.REVISION) is not None
        return self.server.store.tree(repository, revision, revised=revised)

    def plain(self, name: str, commit: str, path: str) -> None:
        """Serve a file as it lies there, to anybody."""
        repository: Entry = {"id": name, "refs": {}}
        commit, entries = self.tree(repository, commit)
        entry = find_entry(entries, path)
        self.send_file(self.server.store.file(repository, commit, entry), {"ETag": f'"{entry["oid"]}"'})

    def redirect(self, name: str, commit: str, path: str, headers: dict[str, str]) -> None:
        """Lead to a large file, by a signed address that expires."""
        target = f"{SIGNED}{name}/{commit}/{path}"
        expires = str(int(time.time()) + self.server.link_seconds)
        query = urlencode({"Expires": expires, "Signature": self.server.sign(target, expires)})
        location = f"{self.server.cdn or self.base}{quote(target)}?{query}"
        self.json({"location": location}, HTTPStatus.FOUND, {**headers, "Location": location})

    def _signed(self, name: str, commit: str, path: str) -> None:
        """Serve a large file to whoever bears a signature that is good. It stands for the permission: a CDN knows no tokens."""
        expires = self.query.get("Expires", "")
        if not hmac.compare_digest(self.server.sign(self.route, expires), self.query.get("Signature", "")):
            raise RefusedError(HTTPStatus.FORBIDDEN, "", "The signature does not match")
        if int(expires) <= time.time():
            raise RefusedError(HTTPStatus.FORBIDDEN, "", "The link has expired")
        repository: Entry = {"id": name, "refs": {}}
        _, entries = self.server.store.tree(repository, commit)
        entry = find_entry(entries, path)
        # The commit is for clients that follow within one host.
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["lfs"]["oid"]}"'}
        self.send_file(self.server.store.file(repository, commit, entry), headers)

    def send_file(self, file: Path, headers: dict[str, str], *, ranges: bool = True) -> None:
        """Send a file or the range of it that is asked for, with the faults that strike it."""
        flows = self.command == "GET"
        fault = self._strike(Stage.CONTENT) if flows else None
        pace = self._strike(Stage.PACE) if flows else None
        content = Content(file, fault, pace)
        size = content.size
        header = self.headers.get("Range") if ranges else None
        if self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            header = None
        try:
            span = parse_range(header, size)
        except UnsatisfiableError:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            raise RefusedError(status, "", "Range not satisfiable", {"Content-Range": f"bytes */{size}"}) from None
        start, end = span or (0, size)
        headers |= {"Content-Type": "application/octet-stream"} | ({"Accept-Ranges": "bytes"} if ranges else {})
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK, headers, end - start)
        if flows:
            self._flow(content, start, end)

    def _flow(self, content: Content, start: int, end: int) -> None:
        """Send bytes of a file; where they break off, fall silent or close the connection."""
        sent = 0
        for chunk in content.chunks(start, end):
            self.wfile.write(chunk)
            sent += len(chunk)
            self.server.stats.sent(self.route, self.client_address[0], len(chunk))
        if content.fault and sent < end - start:
            self.wfile.flush()
            if content.fault.kind == "hang":
                content.fault.released.wait(content.fault.seconds)
            self.close_connection = True

    def flag(self, name: str) -> bool:
        """Return whether a query parameter says yes."""
        return self.query.get(name, "").lower() in {"1", "true"}

    def number(self, name: str, default: int) -> int:
        """Return a query parameter that is a number, or raise RefusedError."""
        text = self.query.get(name, str(default))
        if not text.isdigit():
            raise RefusedError(HTTPStatus.BAD_REQUEST, "", f"{name} is a number")
        return int(text)

    @property
    def base(self) -> str:
        """The address under which the client reached the hub, a proxy in between included."""
        return f"{self.headers.get('X-Forwarded-Proto', 'http')}://{self.headers.get('Host', 'localhost')}"

    def _head(self, status: HTTPStatus, headers: dict[str, str], length: int) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def json(self, value: object, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        """Send a JSON answer."""
        self._send(
            status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, json.dumps(value).encode()
        )

    def _send(self, status: HTTPStatus, headers: dict[str, str], body: bytes) -> None:
        """Send an answer with a body of its own."""
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)
