# SPDX-License-Identifier: Apache-2.0
"""The truth about one revision: path, size and digest of every file."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from pathlib import Path, PurePosixPath

#: Hexadecimal digits of a digest. git-sha1 is what git gives a blob: a hub knows no other of the small files that it keeps in git.
ALGORITHMS = {"sha256": 64, "git-sha1": 40}


class ManifestError(ValueError):
    """The text is no manifest, or one that must not be followed; the text says why."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of the revision: path below its root, size in bytes, digest by its algorithm in hexadecimal."""

    path: str
    size: int
    algorithm: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Repository, full commit and files of one revision, ordered by path."""

    repo: str
    revision: str
    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(file.size for file in self.files)

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """The manifest that the JSON `text` holds; raises ManifestError."""
        try:
            content = json.loads(text)
            files = tuple(sorted((File(**file) for file in content["files"]), key=lambda file: file.path))
            repo, revision = str(content["repo"]), str(content["revision"])
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError("is no manifest") from error
        if not files:
            raise ManifestError("is no manifest: it names no file")
        for file in files:
            _check(file)
        if len({file.path for file in files}) < len(files):
            raise ManifestError("names a file twice")
        return cls(repo, revision, files)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """The manifest in the file `path`; raises ManifestError with its name."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except ManifestError as error:
            raise ManifestError(
                f"{path} {error} -> take it from its source again, or correct the release's model.manifest"
            ) from error

    def text(self) -> str:
        """The manifest as JSON, the same for the same revision."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def _check(file: t.Any) -> None:
    """Raise ManifestError for a file that cannot be, or that would be written outside the revision."""
    if (
        not isinstance(file.path, str)
        or not isinstance(file.digest, str)
        or not isinstance(file.size, int)
        or isinstance(file.size, bool)
        or file.size < 0
    ):
        raise ManifestError("is no manifest: a file needs path, size, algorithm and digest")
    path = PurePosixPath(file.path)
    if not file.path or path.is_absolute() or ".." in path.parts or str(path) != file.path:
        raise ManifestError(f"names a path outside the revision: {file.path!r}")
    if len(file.digest) != ALGORITHMS.get(file.algorithm, -1) or set(file.digest) - set("0123456789abcdef"):
        raise ManifestError(f"gives {file.path} a digest that is none of {', '.join(ALGORITHMS)}")
