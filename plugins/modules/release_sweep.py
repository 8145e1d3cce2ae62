#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Note that the current release serves, and delete what nobody needs since it does."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release_sweep
short_description: Delete releases that nobody goes back to
version_added: 1.0.0
description:
  - To be called once the release has answered. Notes that in the release, and ends a way back that was under way.
  - Keeps the release, C(current), C(previous), and O(keep) other complete releases, those that served or were completed last. Deletes all others,
    torn ones (without C(release.json)), and then uv, interpreters and driver packages that no release of the rest names.
  - What a running process uses is left for the next time. A deletion that is cut off leaves a torn release, never one that looks complete.
options:
  release:
    description: Name of the release that has answered.
    type: str
    required: true
  keep:
    description: Old releases to keep beside C(current) and C(previous).
    type: int
    default: 2
  root:
    description: Folder of the releases and the links.
    type: path
    default: /opt/vllm
  driver_packages:
    description: Folder of driver packages, as C(apt-get) names their files.
    type: path
    default: /var/lib/h20-fleet/driver-packages
attributes:
  check_mode:
    description: Reports what would be deleted.
    support: full
  diff_mode:
    description: Shows what is deleted.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Keep one old release beside the current and the previous one
  h20.fleet.release_sweep:
    release: "2026.11"
    keep: 1
"""

RETURN = r"""
swept:
  description: Paths that were deleted.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _releases


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 2},
            "root": {"type": "path", "default": _releases.ROOT},
            "driver_packages": {"type": "path", "default": _releases.DRIVER_PACKAGES},
        },
        supports_check_mode=True,
    )
    root, release, keep = Path(module.params["root"]), module.params["release"], module.params["keep"]
    if keep < 0:
        module.fail_json(msg=f"keep is {keep} -> 0 keeps the current and the previous release alone")
    stamps = not _releases.has_settled(root, release)
    paths = _releases.leftovers(root, release, keep, Path(module.params["driver_packages"]))
    back = _releases.pointed(root, _releases.ROLLBACK)
    result = {
        "changed": stamps or bool(paths),
        "swept": [str(path) for path in paths],
        "diff": {
            "before": "".join(f"{path}\n" for path in paths) + (f"on the way back to {back}\n" if back else ""),
            "after": f"{release} has answered\n" if stamps else "",
        },
    }
    if not module.check_mode:
        try:
            if stamps:
                (root / "releases" / release / _releases.SERVED).touch()
                (root / _releases.ROLLBACK).unlink(missing_ok=True)
            for path in paths:
                _releases.delete(path)
        except OSError as error:
            module.fail_json(
                msg=f"{error.filename} cannot be deleted or written: {error.strerror}"
                f" -> {release} serves; see the disk of {root}, then run the stage again",
                **result,
            )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
