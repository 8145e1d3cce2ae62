# SPDX-License-Identifier: Apache-2.0
"""A model hub for the test bed: the Hugging Face protocol, a tiny DeepSeek-V3, and the wheel that completes the CPU build of vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from testbed.hub.repository import write_repository
from testbed.hub.tiny_model import build_model
from testbed.hub.wheel import build_wheels

MODEL: Final = "h20-fleet/tiny-deepseek-v3"
SEEDS: Final = ("first", "second")  # a revision each; branch `main` is the first

__all__ = ["MODEL", "SEEDS", "build", "build_wheels"]


def build(destination: Path) -> None:
    """Write what the hub serves to `destination`/models/; doing it again changes nothing."""
    write_repository(destination, MODEL, [build_model(seed) for seed in SEEDS])
