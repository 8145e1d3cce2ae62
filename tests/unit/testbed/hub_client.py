# SPDX-License-Identifier: Apache-2.0
"""What the tests of the hub share: a small model in two revisions, and a plain HTTP client (conftest.py has the server)."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from testbed.hub import server

NAME, PRIVATE = "org/model", "org/private"
TOKEN = "secret"  # noqa: S105 (opens a repository that lives for a test)
LARGE = bytes(range(256)) * 40
FIRST = {"config.json": b'{"a": 1}\n', "sub/deep/notes.txt": b"notes\n", "model.safetensors": LARGE}
SECOND = {**FIRST, "config.json": b'{"a": 2}\n'}
TREE = f"/api/models/{NAME}/tree/main"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """A client of one server."""

    hub: server.HubServer
    revisions: list[str]

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request; do not follow redirects. Raise IncompleteRead or TimeoutError where the body does not come whole."""
        connection = http.client.HTTPConnection("127.0.0.1", self.hub.server_address[1], timeout=1)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def resolve(self, path: str, revision: str = "main", method: str = "GET") -> Answer:
        """Ask for a file."""
        return self.ask(f"/{NAME}/resolve/{revision}/{path}", method)

    @property
    def url(self) -> str:
        """Return the origin."""
        return f"http://127.0.0.1:{self.hub.server_address[1]}"

    def link(self) -> str:
        """Return the signed path of the large file."""
        address = urlsplit(self.resolve("model.safetensors").headers["Location"])
        return f"{address.path}?{address.query}"

    def fault(self, **faults: Any) -> Answer:
        """Set a fault for the pattern *name*."""
        wanted = {f"*{name}*": value for name, value in faults.items()}
        return self.ask("/_testbed/faults", "POST", json.dumps(wanted).encode())
