# SPDX-License-Identifier: Apache-2.0
"""The bytes of a file on their way: the range that was asked for, and the fault that strikes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .faults import Fault

CHUNK = 1 << 20


class UnsatisfiableError(Exception):
    """A range that begins behind the end of the file."""


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


@dataclass(frozen=True)
class Content:
    """A file as it is served: with a fault it may pretend another size, break off, or lie in its last byte."""

    path: Path
    fault: Fault | None = None
    pace: Fault | None = None

    @property
    def size(self) -> int:
        """The size that is told."""
        size = self.path.stat().st_size
        return max(0, size + self.fault.bytes) if self.fault and self.fault.kind == "wrong_size" else size

    def chunks(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end` (exclusive) in pieces, as many and as fast as the faults allow."""
        stop = start + self.fault.sent(end - start) if self.fault else end
        lies = self.fault is not None and self.fault.kind == "corrupt"
        step = min(CHUNK, max(1, self.pace.bytes // 10)) if self.pace else CHUNK
        with self.path.open("rb") as stream:
            stream.seek(start)
            while start < stop:
                wanted = min(step, stop - start)
                chunk = stream.read(wanted).ljust(
                    wanted, b"\0"
                )  # behind the true end, where a larger size is pretended
                start += wanted
                if self.pace:
                    self.pace.wait(wanted)
                yield chunk[:-1] + bytes([chunk[-1] ^ 0xFF]) if lies and start == end else chunk
