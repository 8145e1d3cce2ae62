# SPDX-License-Identifier: Apache-2.0
"""A model hub for the test bed: the protocols of real ones, models to serve, and the wheel that completes the CPU build of vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from testbed.hub.repository import write_repository
from testbed.hub.sharded import build_sharded
from testbed.hub.tiny_model import build_model
from testbed.hub.wheel import build_wheels

MODEL: Final = "h20-fleet/tiny-deepseek-v3"
SEEDS: Final = ("first", "second")  # a revision each; branch `main` is the first
SHARDED: Final = "h20-fleet/sharded"  # two revisions
GATED: Final = "h20-fleet/gated"  # a few shards, for those who have the token
TOKEN: Final = "testbed-hub-token"  # noqa: S105 (opens a repository of the test bed)

__all__ = ["GATED", "MODEL", "SEEDS", "SHARDED", "TOKEN", "build", "build_wheels"]


def build(destination: Path) -> None:
    """Write what the hub serves to `destination`/models/; doing it again changes nothing."""
    write_repository(destination, MODEL, [build_model(seed) for seed in SEEDS])
    write_repository(destination, SHARDED, [build_sharded(revision) for revision in range(2)])
    write_repository(destination, GATED, [build_sharded(shards=2)], token=TOKEN)
