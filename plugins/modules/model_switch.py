#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Let a proved revision of a model be the current one, by one rename, and delete old ones."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_switch
short_description: Make a proved revision of a model the current one by one rename, and delete old ones
version_added: 1.0.0
description:
  - Points C(current), beside the revisions, at one of them.
  - Once that has moved, deletes proved revisions but this one, those that the releases of the host need that are current, previous or on the way back, and
    O(keep) others, the youngest. What was not proved here, and what is still being fetched, is nobody's to delete.
  - A deletion that is cut off is ended by the next call, and never leaves what looks like a revision.
options:
  path:
    description: Folder of the revision.
    type: path
    required: true
  keep:
    description: How many other revisions stay; nothing is deleted where it is left out.
    type: int
  releases:
    description: Folder of the releases and the links to them.
    type: path
    default: /opt/vllm
attributes:
  check_mode:
    description: Says what would move, and what would be deleted. The revision need not be there.
    support: full
  diff_mode:
    description: Shows the link, and what is deleted.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Point current at the revision, and keep one old one
  h20.fleet.model_switch:
    path: /data/models/deepseek-ai/DeepSeek-V3-0324/e9b33add76883f293d6bf61f6bd89b497e80e335
    keep: 1
"""

RETURN = r"""
swept:
  description: Paths that were deleted.
  returned: always
  type: list
  elements: str
"""

import re
import shutil
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _releases, _revisions

CURRENT = "current"
#: What a revision is called while it is deleted.
SWEPT = ".swept"


def pointed(folder: Path) -> str:
    """What `current` names; "" where it is not there or no link."""
    try:
        return str((folder / CURRENT).readlink())
    except OSError:
        return ""


def point(folder: Path, name: str) -> None:
    """Let `current` name a revision, by one rename."""
    new = folder / f".{CURRENT}.new"
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(folder / CURRENT)


def needed(releases: Path, repo: str) -> set[str]:
    """The revisions that the host's releases serve from or go back to."""
    known = _releases.read(releases)
    links = (_releases.CURRENT, _releases.PREVIOUS, _releases.ROLLBACK)
    definitions = [known[name].definition for link in links if (name := _releases.pointed(releases, link)) in known]
    models = [definition["model"] for definition in definitions if definition and "model" in definition]
    return {str(model["revision"]) for model in models if model.get("repo") == repo}


def leftovers(revision: Path, keep: int, wanted: t.Container[str]) -> list[Path]:
    """Proved revisions beside this one that nobody needs, but for the youngest."""
    others = [
        path
        for path in revision.parent.iterdir()
        if re.fullmatch("[0-9a-f]{40}", path.name)
        and (path / _revisions.STAMP).exists()
        and path.name != revision.name
        and path.name not in wanted
    ]
    youngest = sorted(others, key=lambda path: -_revisions.changed(path / _revisions.STAMP))
    return sorted(youngest[keep:])


def delete(path: Path) -> None:
    """Delete a folder; from the first moment on it does not look like a revision."""
    away = path if path.name.endswith(SWEPT) else path.with_name(path.name + SWEPT)
    if away != path:
        path.rename(away)
    shutil.rmtree(away)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "keep": {"type": "int"},
            "releases": {"type": "path", "default": _releases.ROOT},
        },
        supports_check_mode=True,
    )
    revision, keep = Path(module.params["path"]), module.params["keep"]
    folder = revision.parent
    if keep is not None and keep < 0:
        module.fail_json(msg=f"model_keep_revisions is {keep} -> 0 keeps the current one and what the releases need")
    if not revision.is_dir() and not module.check_mode:
        module.fail_json(msg=f"{revision} is not there -> run the stage again: --tags model")
    before = pointed(folder)
    moves = before != revision.name
    swept: list[Path] = []
    if keep is not None and folder.is_dir():
        swept = sorted(folder.glob(f"*{SWEPT}"))
        if moves:
            repo = f"{folder.parent.name}/{folder.name}"
            swept += leftovers(revision, keep, needed(Path(module.params["releases"]), repo))
    try:
        if moves and not module.check_mode:
            point(folder, revision.name)
        for path in swept if not module.check_mode else []:
            delete(path)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename} cannot be changed: {error.strerror} -> {folder / CURRENT} has to be a link or absent; see the disk, then run the stage again"
        )
    gone = "".join(f"{path}\n" for path in swept)
    module.exit_json(
        changed=moves or bool(swept),
        swept=[str(path) for path in swept],
        diff={
            "before": (f"{CURRENT} -> {before}\n" if before else "") + gone,
            "after": f"{CURRENT} -> {revision.name}\n",
        },
    )


if __name__ == "__main__":
    main()
