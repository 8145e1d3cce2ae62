# SPDX-License-Identifier: Apache-2.0
"""How far the work is: a file that others read at any time, and lines in the journal."""

from __future__ import annotations

import dataclasses
import json
import time
import typing as t
from pathlib import Path

#: In this order, though a phase may be left out. `retrying` says that no source answers just now; `seeding`, `complete` and `failed` end the waiting of others.
PHASES = ("proving", "waiting", "fetching", "receiving", "retrying", "seeding", "complete", "failed")


@dataclasses.dataclass
class Progress:
    """A host's own account. `bytes` of `total` are on its disk, `origin` of those came from a source outside the site in this run;
    `rate` is in bytes a second, `source` names who sends just now, `error` is why it failed or what it waits for."""

    host: str
    phase: str = "proving"
    bytes: int = 0
    total: int = 0
    origin: int = 0
    rate: float = 0
    source: str = ""
    error: str = ""
    updated: float = dataclasses.field(default_factory=time.time)

    @property
    def eta(self) -> float | None:
        """Seconds that are left at this rate; None where nobody can tell."""
        return (self.total - self.bytes) / self.rate if self.rate else None

    def as_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self) | {"eta": self.eta}


def write_json(path: Path, content: t.Any) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)
