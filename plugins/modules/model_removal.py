#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Delete the weights that the collection brought, as far as its manifests name them."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_removal
short_description: Delete the revisions of models that the collection brought
version_added: 1.0.0
description:
  - Deletes from each revision's folder the files that its manifest on the host names, or that were proved there once (which the folder itself remembers, after
    a removal that left the weights as well), what is still being fetched of it, and the link C(current) where that led there; then the folders that are empty.
  - What anybody else has put beside them stays, and so does O(root). Nothing may be fetching.
options:
  root:
    description: Folder of all weights; a revision that lies elsewhere is left alone.
    type: path
    required: true
  jobs:
    description: Folder of the manifests and jobs.
    type: path
    default: /etc/h20-fleet/models
attributes:
  check_mode:
    description: Says what would be deleted.
    support: full
  diff_mode:
    description: Shows the revisions that go.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Delete the weights
  h20.fleet.model_removal:
    root: /data/models
"""

RETURN = r"""
removed:
  description: Folders of revisions of which files were deleted.
  returned: always
  type: list
  elements: str
freed_bytes:
  description: Bytes of the files that were deleted.
  returned: always
  type: int
left:
  description: Files in these folders that no manifest names, so that they stay.
  returned: always
  type: list
  elements: str
"""

import dataclasses
import re
import shutil
import typing as t
from pathlib import Path, PurePosixPath

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _revisions
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job, JobError
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import Manifest, ManifestError

CURRENT = "current"


@dataclasses.dataclass
class Revision:
    """The folder of a revision, the files in it that were brought, and the folder of what is still being fetched of it."""

    folder: Path
    names: set[str]
    partial: Path | None = None

    @property
    def brought(self) -> list[Path]:
        """What of it is there."""
        paths = [self.folder / name for name in sorted({*self.names, _revisions.STAMP})]
        return [path for path in paths if path.is_file() or path.is_symlink()]

    @property
    def bytes(self) -> int:
        """Bytes of all that is deleted."""
        fetching = [path for path in self.partial.rglob("*") if path.is_file()] if self.partial else []
        return sum(path.lstat().st_size for path in (*self.brought, *fetching))

    @property
    def others(self) -> list[Path]:
        """What somebody else has put there."""
        brought = self.brought
        return sorted(path for path in self.folder.rglob("*") if not path.is_dir() and path not in brought)


def revisions(jobs: Path, root: Path) -> list[Revision]:
    """The revisions below the root that were brought to this host, by their manifests and by what was proved of them."""
    found: dict[Path, Revision] = {}
    shared: set[Path] = set()
    for path in sorted(jobs.glob("*.job.json")):
        try:
            job = Job.load(path)
            manifest = Manifest.load(job.manifest)
        except (OSError, JobError, ManifestError):  # what nobody can read names nothing
            continue
        if job.distribution == "shared":
            shared.add(job.destination)
        elif root in job.destination.parents:
            names = {file.path for file in manifest.files}
            found[job.destination] = Revision(job.destination, names, job.partial if job.partial.is_dir() else None)
    for stamp in sorted(root.glob(f"*/*/*/{_revisions.STAMP}")):
        if re.fullmatch("[0-9a-f]{40}", stamp.parent.name) and stamp.parent not in shared:
            found.setdefault(stamp.parent, Revision(stamp.parent, set())).names.update(proved(stamp))
    return [found[folder] for folder in sorted(found) if found[folder].brought or found[folder].partial]


def proved(stamp: Path) -> set[str]:
    """The files that a stamp names, but for any outside of its folder."""
    names = (PurePosixPath(name) for name in _revisions.read_json(stamp))
    return {str(name) for name in names if not name.is_absolute() and ".." not in name.parts}


def delete(revision: Revision, root: Path) -> None:
    """Delete what was brought, and then what that leaves empty."""
    for path in revision.brought:
        path.unlink()
    if revision.partial:
        shutil.rmtree(revision.partial)
    inner = [path for path in revision.folder.rglob("*") if path.is_dir() and not path.is_symlink()]
    for folder in sorted((*inner, revision.folder), key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    current = revision.folder.parent / CURRENT
    if current.is_symlink() and not current.exists():
        current.unlink()
    for parent in revision.folder.parents:
        if root not in parent.parents or any(parent.iterdir()):
            break
        parent.rmdir()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "jobs": {"type": "path", "default": str(_revisions.JOBS)},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    try:
        found = revisions(Path(module.params["jobs"]), root)
        result = {
            "changed": bool(found),
            "removed": [str(revision.folder) for revision in found],
            "freed_bytes": sum(revision.bytes for revision in found),
            "left": [str(path) for revision in found for path in revision.others],
            "diff": {"before": "".join(f"{revision.folder}\n" for revision in found), "after": ""},
        }
        for revision in found if not module.check_mode else ():
            delete(revision, root)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename} cannot be deleted: {error.strerror} -> see the disk of {root}, then run it again"
        )
    if left := t.cast(list[str], result["left"]):
        module.warn(f"{len(left)} files stay that no manifest names, the first is {left[0]}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
