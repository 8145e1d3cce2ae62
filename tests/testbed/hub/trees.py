# SPDX-License-Identifier: Apache-2.0
"""What the hub's repositories hold, as who checks on a download needs it: revisions, manifests, digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Revision:
    """One revision of a repository, as write_repository left it below `root`."""

    root: Path
    repo: str
    commit: str

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.root / "models" / self.repo / self.commit

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of every file by path."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def manifest(self) -> str:
        """Return the manifest as a release brings it: digests as the hub's tree tells them."""
        files = [
            {
                "path": entry["path"],
                "size": entry["size"],
                "algorithm": "sha256" if "lfs" in entry else "git-sha1",
                "digest": entry["lfs"]["oid"] if "lfs" in entry else entry["oid"],
            }
            for entry in json.loads(self.folder.with_suffix(".json").read_bytes())
        ]
        return json.dumps({"repo": self.repo, "revision": self.commit, "files": files}, indent=1) + "\n"


def revisions(root: Path, repo: str) -> list[Revision]:
    """Return the revisions of a repository, the one of branch `main` first."""
    folder = root / "models" / repo
    main = json.loads((folder / "repository.json").read_bytes())["refs"]["main"]
    others = sorted({path.stem for path in folder.glob("*.json")} - {main, "repository"})
    return [Revision(root, repo, commit) for commit in (main, *others)]
