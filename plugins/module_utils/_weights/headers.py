# SPDX-License-Identifier: Apache-2.0
"""What safetensors say of themselves: read in milliseconds, it shows a torn file, or shards of different revisions, before a service loads them."""

from __future__ import annotations

import json
import struct
import typing as t
from pathlib import Path

INDEX = "model.safetensors.index.json"
#: Bytes that a header may have, by the format's own rule.
LONGEST = 100_000_000


class HeaderError(ValueError):
    """The file is not what it says; the text says how."""


def problems(root: Path) -> list[str]:
    """What is wrong with the safetensors of a folder, each line with a file's name; none where each is whole and has what the index says of it.

    Where there are none, nothing is wrong with them: a service that needs some says so itself.
    """
    paths = {path.name: path for path in root.glob("*.safetensors")}
    if not paths:
        return []
    try:
        wanted = _index(root / INDEX)
    except HeaderError as error:
        return [str(error)]
    paths |= {name: root / name for name in wanted}
    found = {name: _problem(path, wanted.get(name, set())) for name, path in paths.items()}
    return [f"{name} {found[name]}" for name in sorted(found) if found[name]]


def _problem(path: Path, wanted: set[str]) -> str:
    """What is wrong with one file of which the index wants tensors. It may have more: published ones do, and are loaded."""
    if not path.is_file():
        return f"is missing, {INDEX} names it"
    try:
        lacking = sorted(wanted - read(path))
    except HeaderError as error:
        return str(error)
    return f"lacks {len(lacking)} of the tensors that {INDEX} says it has, the first is {lacking[0]}" if lacking else ""


def _index(path: Path) -> dict[str, set[str]]:
    """The tensors of each file by the index, where there is one; raises HeaderError."""
    wanted: dict[str, set[str]] = {}
    if not path.exists():
        return wanted
    try:
        weights: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        for tensor, name in weights.items():
            wanted.setdefault(name, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeaderError(f"{path.name} has no weight_map that can be read") from error
    return wanted


def read(path: Path) -> frozenset[str]:
    """Names of the tensors of a file; raises HeaderError where its bytes are not those that its header describes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 0 < length <= min(LONGEST, size - 8):
            raise HeaderError(f"has {size} bytes and no header")
        text = file.read(length)
    try:
        header = json.loads(text)
        spans = sorted(tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
        end = _end(spans)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeaderError("has a header that cannot be read") from error
    if 8 + length + end != size:
        raise HeaderError(f"has {size} bytes, its header describes {8 + length + end}")
    return frozenset(header) - {"__metadata__"}


def _end(spans: t.Iterable[tuple[int, int]]) -> int:
    """Where the last of the tensors ends; each begins where the one before ends."""
    end = 0
    for first, last in spans:
        if first != end or last < first:
            raise ValueError("a gap")
        end = last
    return end
