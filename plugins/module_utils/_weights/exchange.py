# SPDX-License-Identifier: Apache-2.0
"""What the hosts of a site tell each other. The first origin keeps the books and serves them:

GET  /offers?host=NAME[&ready]  what NAME may fetch now, whose tracker knows it, and what became of the others (News); ready: it may be a relay
GET  /torrents/HASH             the torrent of an offer
PUT  /offers/PATH?host=NAME     an origin offers a file; the body is its torrent, or empty where files go over HTTP
PUT  /confirmed/HASH?host=NAME  an origin is among the peers of a torrent
PUT  /withdrawn/HASH?host=NAME  it is no more
PUT  /introduced/HASH?host=NAME the leader of a group has it in its tracker
PUT  /relays/PATH?host=NAME     what the relay of a file has of it (bytes, gives, whole)
PUT  /begun/NAME, /left/NAME    a host has been started, and knows nothing of what it served; it ends
POST /hosts/NAME                the host's own account (Progress); the answer says whether the site still needs it
GET  /hosts                     all accounts, as they are kept for the controller
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
import typing as t
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from . import addresses
from .books import Books, Had, News
from .children import ChildError
from .job import Job, Site
from .progress import write_json

#: Seconds that an answer may take, and bytes that a body may have: a torrent has 20 for each piece.
TIMEOUT = 20
BODY = 64 * 1024 * 1024
#: Seconds between two writes of the accounts for the controller.
WRITES = 1


class ExchangeError(Exception):
    """The exchange does not answer, or it refuses; the text says why."""


class Exchange:
    """Serves the books to the hosts of the site, and to nobody else; keeps the accounts in the job's `hosts` for the controller."""

    def __init__(self, job: Job, books: Books) -> None:
        self._path = job.hosts
        self._books = books
        self._server = _Server((addresses.own(books.site, job.host), books.site.port), books)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._keep)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.2)

    def _keep(self) -> None:
        done = False
        while not done:
            done = self._stop.wait(WRITES)
            # A full disk ends the work of this host itself, not what it tells the others.
            with contextlib.suppress(OSError):
                write_json(self._path, self._books.summary())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], books: Books) -> None:
        super().__init__(address, _Handler)
        self.books = books
        self._addresses = addresses.all_of(books.site)

    def knows(self, address: str) -> bool:
        """Whether a host of the site, or this one itself, has the address."""
        return address in self._addresses or address.startswith("127.")

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    """One request, one connection."""

    server: _Server
    timeout = TIMEOUT

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: t.Any) -> None:  # noqa: A002 (the name is the base class's)
        """Requests come every second of every host: the journal is for other things."""

    def _answer(self) -> None:
        if not self.server.knows(self.client_address[0]):
            self._send(
                403, f"{self.client_address[0]} is no address of this site's hosts -> correct model_address".encode()
            )
            return
        parts = urlsplit(self.path)
        _root, what, name = [*unquote(parts.path).split("/", 2), ""][:3]
        query = dict(parse_qsl(parts.query))
        length = int(self.headers.get("Content-Length", 0))
        if length > BODY:
            self._send(413, b"the body is too long")
            return
        try:
            content = self._do(f"{self.command} /{what}", name, query, self.rfile.read(length))
        except KeyError as error:
            self._send(404, f"nobody here knows {error}".encode())
        except (ValueError, TypeError) as error:
            self._send(400, str(error).encode())
        except ChildError as error:
            self._send(500, str(error).encode())
        else:
            self._send(200, content if isinstance(content, bytes) else json.dumps(content).encode())

    def _do(self, request: str, name: str, query: t.Mapping[str, str], body: bytes) -> t.Any:
        books, host = self.server.books, query.get("host", "")
        if request == "GET /offers":
            return dataclasses.asdict(books.news(host, ready="ready" in query))
        if request == "GET /torrents":
            return books.torrent(name)
        if request == "GET /hosts":
            return books.summary()
        if request == "POST /hosts":
            return {"needed": books.account(name, json.loads(body))}
        if request == "PUT /offers":
            return books.offer(name, host, body)
        if request == "PUT /left":
            return books.leave(name)
        if request == "PUT /begun":
            return books.begin(name)
        if request == "PUT /confirmed":
            return books.confirm(host, name)
        if request == "PUT /withdrawn":
            return books.withdraw(host, name)
        if request == "PUT /introduced":
            return books.introduce(host, name)
        if request == "PUT /relays":
            return books.advance(host, name, Had(**json.loads(body)))
        raise KeyError(request)

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Client:
    """Asks the exchange on behalf of the host `name`. Raises ExchangeError."""

    def __init__(self, site: Site, name: str) -> None:
        self._own = addresses.own(site, name)
        self._address = site.hosts[site.exchange].address if name != site.exchange else self._own or "127.0.0.1"
        self._port = site.port
        self._host = {"host": name}
        self._name = name

    def news(self, *, ready: bool = True) -> News:
        """What this host may fetch; `ready` to be the relay of files, it knows what it has and what it lacks."""
        return News.of(json.loads(self._ask("GET", "/offers", query=self._host | ({"ready": "1"} if ready else {}))))

    def torrent(self, info_hash: str) -> bytes:
        return self._ask("GET", f"/torrents/{info_hash}")

    def offer(self, path: str, torrent: bytes) -> None:
        self._ask("PUT", f"/offers/{quote(path)}", torrent, self._host)

    def begin(self) -> None:
        """Say that what this host has served before is over."""
        self._ask("PUT", f"/begun/{quote(self._name)}")

    def confirm(self, info_hash: str) -> None:
        self._ask("PUT", f"/confirmed/{info_hash}", query=self._host)

    def withdraw(self, info_hash: str) -> None:
        self._ask("PUT", f"/withdrawn/{info_hash}", query=self._host)

    def introduce(self, info_hash: str) -> None:
        self._ask("PUT", f"/introduced/{info_hash}", query=self._host)

    def advance(self, path: str, had: Had) -> None:
        """Say how much of a file this host has, which is its relay."""
        self._ask("PUT", f"/relays/{quote(path)}", json.dumps(dataclasses.asdict(had)).encode(), self._host)

    def report(self, account: dict[str, t.Any]) -> bool:
        """Say how far this host is; whether the site still needs it."""
        answer = json.loads(self._ask("POST", f"/hosts/{quote(self._name)}", json.dumps(account).encode()))
        return bool(answer["needed"])

    def leave(self) -> None:
        """Ask no more."""
        self._ask("PUT", f"/left/{quote(self._name)}")

    def _ask(
        self, method: str, path: str, body: bytes | None = None, query: t.Mapping[str, str] | None = None
    ) -> bytes:
        where = f"the exchange {self._address}:{self._port}"
        connection = http.client.HTTPConnection(self._address, self._port, TIMEOUT, (self._own, 0))
        try:
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, body)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ExchangeError(f"{where} does not answer: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ExchangeError(f"{where} refuses {method} {path}: {content.decode(errors='replace')}")
        return content
