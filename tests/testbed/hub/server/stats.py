# SPDX-License-Identifier: Apache-2.0
"""What has been asked and sent since the last look."""

from __future__ import annotations

import threading
import time
from collections import Counter

TOLERANCE = 0.05  # seconds, of clocks and of what is under way


class Stats:
    """What came and went; safe for threads.

    Requests and bytes of content by path, bytes by client; tokens that came where they have no business ("leaks"), and requests of who was told to wait and did
    not ("hasty").
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def asked(self, path: str, client: str, *, leaked: bool) -> None:
        """Count a request for `path`; `leaked`: it bore a token to a host that must not see one."""
        with self._lock:
            self._requests[path] += 1
            self._leaks += leaked
            self._hasty += time.monotonic() < self._waits.get((client, path), 0)

    def told_to_wait(self, path: str, client: str, seconds: float) -> None:
        """Remember that the client shall not ask for `path` again before so many seconds have passed."""
        with self._lock:
            self._waits[client, path] = time.monotonic() + seconds - TOLERANCE

    def sent(self, path: str, client: str, size: int) -> None:
        """Count bytes of content."""
        with self._lock:
            self._bytes[path] += size
            self._clients[client] += size

    def clear(self) -> None:
        """Start anew."""
        with self._lock:
            self._requests: Counter[str] = Counter()
            self._bytes: Counter[str] = Counter()
            self._clients: Counter[str] = Counter()
            self._leaks = self._hasty = 0
            self._waits: dict[tuple[str, str], float] = {}

    def public(self) -> dict[str, object]:
        """Return the counts, as JSON shows them."""
        with self._lock:
            paths = {
                path: {"requests": self._requests[path], "bytes": self._bytes[path]} for path in sorted(self._requests)
            }
            troubles = {"leaks": self._leaks, "hasty": self._hasty}
            return {"bytes": self._bytes.total(), **troubles, "clients": dict(self._clients), "paths": paths}
