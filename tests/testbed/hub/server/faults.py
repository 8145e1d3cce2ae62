# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the world, as tests set it at run time: which fault strikes which request, and at what stage of the answer."""

from __future__ import annotations

import enum
import fnmatch
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


class Stage(enum.Enum):
    """When a fault strikes: instead of an answer, at what a revision names, where content flows, at its speed."""

    REFUSAL = enum.auto()
    REVISION = enum.auto()
    CONTENT = enum.auto()
    PACE = enum.auto()


REFUSALS = {
    "429": HTTPStatus.TOO_MANY_REQUESTS,
    "500": HTTPStatus.INTERNAL_SERVER_ERROR,
    "503": HTTPStatus.SERVICE_UNAVAILABLE,
    "missing": HTTPStatus.NOT_FOUND,
    "expired": HTTPStatus.FORBIDDEN,
}
STAGES = {
    **dict.fromkeys([*REFUSALS, "silent"], Stage.REFUSAL),
    "revised": Stage.REVISION,
    **dict.fromkeys(["corrupt", "truncate", "hang", "cut", "wrong_size"], Stage.CONTENT),
    "rate": Stage.PACE,
}
OPTIONS = frozenset({"kind", "count", "seconds", "retry_after", "bytes"})
SIGNED = "/cdn/"  # below it everything needs a signature, and nothing else can expire


@dataclass
class Fault:
    """One fault: where and what, how often still (None: until cleared), how long a silence or an announced wait lasts in seconds, how many bytes."""

    pattern: str
    kind: str
    count: int | None = None
    seconds: float = 600
    retry_after: int = 1
    bytes: int = 1
    released: threading.Event = field(default_factory=threading.Event, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _free: float = field(default=0, repr=False)  # when the next byte of a rate may leave

    def strikes(self, client: str, path: str, stage: Stage) -> bool:
        """Return whether a request of `client` for `path` meets this fault at `stage`."""
        if (
            self.count == 0
            or STAGES[self.kind] is not stage
            or (self.kind == "expired" and not path.startswith(SIGNED))
        ):
            return False
        return any(fnmatch.fnmatchcase(address, self.pattern) for address in (path, client + path))

    def sent(self, size: int) -> int:
        """Return how many of `size` bytes are sent before the answer breaks off."""
        limits = {"truncate": size // 2, "hang": size // 2, "cut": self.bytes}
        return min(size, limits.get(self.kind, size))

    def wait(self, size: int) -> None:
        """Wait until `size` more bytes may leave: all requests that a rate strikes share it."""
        with self._turn:
            self._free = max(self._free, time.monotonic()) + size / self.bytes
            pause = self._free - time.monotonic()
        self.released.wait(pause)

    def public(self) -> dict[str, object]:
        """Return the fault as JSON shows it."""
        return {name: getattr(self, name) for name in ("kind", "count", "seconds", "retry_after", "bytes")}


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
            kind = str(options.get("kind"))
            if kind not in STAGES or options.keys() - OPTIONS:
                choices = (
                    f"kind is one of {', '.join(sorted(STAGES))}; options are {', '.join(sorted(OPTIONS - {'kind'}))}"
                )
                raise ValueError(f"{pattern}: {choices}; got {value!r}")
            if kind == "rate" and options.get("bytes", 0) <= 0:
                raise ValueError(f"{pattern}: a rate needs bytes, so many a second; got {value!r}")
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

    def strike(self, client: str, path: str, stage: Stage) -> Fault | None:
        """Return the fault that strikes a request of `client` for `path` at `stage`, counted, or None."""
        with self._lock:
            fault = next((fault for fault in self._faults.values() if fault.strikes(client, path, stage)), None)
            if fault and fault.count is not None:
                fault.count -= 1
            return fault
