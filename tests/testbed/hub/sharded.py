# SPDX-License-Identifier: Apache-2.0
"""A model of many files and some fifty megabytes, which nothing loads: what takes a while to carry about, and can be carried in parts.

Beside its shards it has what trips those who copy files: one that is empty, one in a folder, one whose name has to be quoted.
"""

from __future__ import annotations

import random
from typing import Final

from testbed.hub.safetensors import Tensor, as_json, checkpoint

SHARDS: Final = 12
SHARD_BYTES: Final = 4 << 20
CHANGED: Final = 2  # index of the shard whose bytes another revision changes
GROWN: Final = 5  # and of the one that it makes longer
GROWTH: Final = 4096


def _shard(index: int, seed: str, size: int) -> dict[str, Tensor]:
    """Return two tensors of `size` bytes together, drawn from `seed`."""
    numbers = random.Random(f"{seed}/{index}")  # noqa: S311 (the same bytes everywhere are the point)
    half = size // 2
    return {
        f"layers.{index}.{name}": Tensor("U8", (half // 256, 256), numbers.randbytes(half)) for name in ("up", "down")
    }


def build_sharded(revision: int = 0, shards: int = SHARDS) -> dict[str, bytes]:
    """Return the files by path. Revisions after the first change a shard, make one longer, and lack the notes."""
    groups = [
        _shard(
            index,
            f"sharded/{revision if index in {CHANGED, GROWN} else 0}",
            SHARD_BYTES + (GROWTH * revision if index == GROWN else 0),
        )
        for index in range(shards)
    ]
    files = {
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": f"# Many shards\n\nRandom bytes, revision {revision}. They are there to be moved.\n".encode(),
        "config.json": as_json({"model_type": "none", "num_hidden_layers": shards}),
        "inference/__init__.py": b"",
        "notes/100 % of ü+β.txt": b"A name that has to be quoted.\n",
        **checkpoint(groups),
    }
    if revision:
        del files["notes/100 % of ü+β.txt"]
    return files
