# SPDX-License-Identifier: Apache-2.0
"""Torrents of single files, made by mktorrent: private, without a date or a tracker, so that the same file always gets the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from .manifest import File

#: Pieces of a file: few enough that a torrent stays small, enough that many hosts have something to give each other.
PIECES = 1024
#: Powers of two: no piece is smaller than 256 KiB nor, as long as it goes, larger than 4 MiB.
SMALLEST, LARGEST = 18, 22


class TorrentError(ValueError):
    """The torrent cannot be made, or it is not the file's; the text says why."""


def piece_bits(size: int) -> int:
    """The piece length for a file of this size, as a power of two."""
    return min(max((size // PIECES).bit_length(), SMALLEST), LARGEST)


def make(path: Path, file: File, folder: Path) -> bytes:
    """The torrent of the file that lies at `path`; it is kept in `folder`, which is the caller's own. Raises TorrentError."""
    kept = folder / f"{file.digest}.torrent"
    kept.unlink(missing_ok=True)
    done = subprocess.run(
        ["mktorrent", "-p", "-d", "-l", str(piece_bits(file.size)), "-n", path.name, "-o", str(kept), str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    if done.returncode or not kept.exists():
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise TorrentError(f"mktorrent could not read {path}: {''.join(reason)}")
    return kept.read_bytes()


def info_hash(content: bytes, file: File) -> str:
    """The hash that names the torrent in the swarm; raises TorrentError for one that is not of this file."""
    name = Path(file.path).name.encode()
    start = content.find(b"4:infod") + len(b"4:info")
    expected = b"d6:lengthi%de4:name%d:%s12:piece length" % (file.size, len(name), name)
    if not content.startswith(expected, start) or not content.endswith(b"7:privatei1eee"):
        raise TorrentError(f"this is no private torrent of {file.path} with {file.size} bytes")
    return hashlib.sha1(content[start:-1], usedforsecurity=False).hexdigest()
