# SPDX-License-Identifier: Apache-2.0
"""Repositories as the hub's server finds them on disk.

    <root>/models/<org>/<name>/repository.json      {"id", "refs": {"main": <revision>}, "token": null or the one that opens it}
    <root>/models/<org>/<name>/<revision>.json      the revision's tree: [{"type", "path", "size", "oid", "lfs"?}], as the hub's API gives it
    <root>/models/<org>/<name>/<revision>/...       the files

What a server has to know is computed when a repository is written, so that one of any size is served at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def _blob_id(content: bytes) -> str:
    """Return the id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, object]:
    """Return a file's line in the tree. Large formats are in git only as a pointer, whose id their line bears beside the sha256 of the file."""
    if not path.endswith(LFS_SUFFIXES):
        return {"type": "file", "oid": _blob_id(content), "size": len(content), "path": path}
    digest = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()
    lfs = {"oid": digest, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "oid": _blob_id(pointer), "size": len(content), "lfs": lfs, "path": path}


def tree(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    """Return the tree of a revision: a line a file, sorted by path."""
    return [_entry(path, files[path]) for path in sorted(files)]


def revision_of(entries: Iterable[Mapping[str, object]]) -> str:
    """Return the 40 hex digits that name a tree: a function of its paths and contents alone."""
    lines = "".join(f"{entry['oid']} {entry['path']}\n" for entry in entries)
    return hashlib.sha1(lines.encode(), usedforsecurity=False).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file unless it is there with this content already."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_repository(
    root: Path, name: str, versions: Iterable[Mapping[str, bytes]], token: str | None = None
) -> list[str]:
    """Write the model repository `name` (org/name) with a revision for each of `versions` and return them; branch `main` is the first.

    A token, where one is given, has to come with every request for the repository. What is there with the same content stays untouched.
    """
    folder = root / "models" / name
    revisions = []
    for files in versions:
        entries = tree(files)
        revision = revision_of(entries)
        for path, content in files.items():
            _write(folder / revision / path, content)
        _write(folder / f"{revision}.json", json.dumps(entries, indent=1).encode())
        revisions.append(revision)
    description = {"id": name, "refs": {"main": revisions[0]}, "token": token}
    _write(folder / "repository.json", json.dumps(description, indent=1).encode())
    return revisions
