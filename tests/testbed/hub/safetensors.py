# SPDX-License-Identifier: Apache-2.0
"""Files of tensors, as the stand-in models have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """One tensor: its type as the format names it, its shape, its bytes."""

    kind: str
    shape: tuple[int, ...]
    data: bytes


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return a safetensors file: length of the header (8 bytes, little endian), header padded with blanks to 8 bytes, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + len(tensor.data)
        header[name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values())


def as_json(value: object) -> bytes:
    """Return JSON as people read it, with a newline at its end."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def checkpoint(shards: Iterable[Mapping[str, Tensor]]) -> dict[str, bytes]:
    """Return the files of a checkpoint, a file for each of `shards`, and the index that says which tensor is where."""
    groups = list(shards)
    names = [f"model-{number:05}-of-{len(groups):06}.safetensors" for number in range(1, len(groups) + 1)]
    index = {
        "metadata": {"total_size": sum(len(tensor.data) for group in groups for tensor in group.values())},
        "weight_map": {name: shard for shard, group in zip(names, groups, strict=True) for name in group},
    }
    files = {name: pack(group) for name, group in zip(names, groups, strict=True)}
    return files | {"model.safetensors.index.json": as_json(index)}
