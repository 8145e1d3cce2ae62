# SPDX-License-Identifier: Apache-2.0
"""opentracker, which introduces the peers of the torrents on its list to each other, and of no others."""

from __future__ import annotations

import http.client
import os
import threading
from pathlib import Path
from urllib.parse import quote, urlencode

from . import children
from .children import Child, ChildError

#: Seconds that an answer may take.
PATIENCE = 10
#: A port that nobody listens on: who asks whether a torrent is on the list announces no peer.
NOBODY = 1


def announce(tracker: tuple[str, int], own: str, info_hash: str, port: int, event: str) -> bytes:
    """Say to a tracker that a peer at the address `own` of this host, "" for any, has `started` or `stopped`; what it answers, b"" where it does not."""
    query = {"info_hash": bytes.fromhex(info_hash), "peer_id": os.urandom(10).hex(), "port": port, "event": event}
    rest = {"left": 1, "uploaded": 0, "downloaded": 0, "compact": 1, "numwant": 0}
    connection = http.client.HTTPConnection(*tracker, PATIENCE, (own, 0))
    try:
        # opentracker does not take a plus for a space.
        connection.request("GET", f"/announce?{urlencode(query | rest, quote_via=quote)}")
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def takes(answer: bytes) -> bool:
    """Whether a tracker's answer says that it knows the torrent."""
    return bool(answer) and b"failure reason" not in answer


class Tracker:
    """The tracker of this host's group; `own` is the address that it listens on, "" for all."""

    def __init__(self, folder: Path, own: str, port: int) -> None:
        self._folder = folder
        self._own = own
        self._port = port
        self._list = folder / "whitelist"
        self._allowed: set[str] = set()
        self._lock = threading.Lock()
        self._child: Child | None = None

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._list.write_text("", encoding="ascii")
        listen = ["-i", self._own or "0.0.0.0", "-p", str(self._port)]  # noqa: S104 (the firewall lets the site's hosts in alone)
        self._child = Child(["opentracker", *listen, "-d", str(self._folder), "-w", self._list.name], self._port)
        # Until it has answered once, the signal to read its list would end it.
        self._child.until(lambda: bool(self._announce("0" * 40, NOBODY, "started")), "does not answer")

    def allow(self, info_hash: str) -> None:
        """Put the torrent on the list, and return when it counts; raises children.ChildError."""
        with self._lock:
            if self._child is None:
                raise ChildError("the tracker has not been started")
            if info_hash in self._allowed:
                return
            # Written beside it first: opentracker may read the list at any moment.
            new = self._list.with_suffix(".new")
            new.write_text("".join(f"{allowed}\n" for allowed in (*self._allowed, info_hash)), encoding="ascii")
            new.replace(self._list)
            self._child.reread()
            self._child.until(lambda: self._knows(info_hash), f"does not take {info_hash} on its list")
            self._allowed.add(info_hash)
        self._announce(info_hash, NOBODY, "stopped")

    def announce(self, info_hash: str, port: int) -> None:
        """Introduce this host's own peer, which itself announces to another tracker."""
        self._announce(info_hash, port, "started")

    def close(self) -> None:
        children.end([self._child])

    def _knows(self, info_hash: str) -> bool:
        return takes(self._announce(info_hash, NOBODY, "started"))

    def _announce(self, info_hash: str, port: int, event: str) -> bytes:
        return announce((self._own or "127.0.0.1", self._port), self._own, info_hash, port, event)
