# SPDX-License-Identifier: Apache-2.0
"""Files of a bundle: their digests, computed by all cores, and writing them whole."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import typing as t
from pathlib import Path

BLOCK = 16 * 1024 * 1024


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content, read in blocks."""
    state = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def digests(files: t.Mapping[Path, str]) -> dict[Path, str]:
    """Digest of each file by its algorithm. hashlib lets other threads run while it works, so that all cores do."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(digest, files.keys(), files.values()), strict=True))


def write(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, readable by everybody."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.chmod(0o644)
    partial.replace(path)
