#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Let a host's current release be another one, by one rename."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release_switch
short_description: Make a complete release the current one by one rename
version_added: 1.0.0
description:
  - Points C(current) at the release, and before that C(previous) at the one that was current, so that a cut between the two leaves
    a host that serves what it served.
  - C(previous) is the last other release that has served. One that was current and never answered is passed over, so that the way back leads to one that did.
  - Refuses a release that is not complete, and changes nothing then.
options:
  release:
    description: Name of the release.
    type: str
    required: true
  root:
    description: Folder of the releases and the links.
    type: path
    default: /opt/vllm
  keep:
    description: Old releases that M(h20.fleet.release_sweep) will keep, for RV(settled).
    type: int
    default: 2
  driver_packages:
    description: Folder of driver packages that M(h20.fleet.release_sweep) will sweep, for RV(settled).
    type: path
    default: /var/lib/h20-fleet/driver-packages
attributes:
  check_mode:
    description: Reports whether the links would change.
    support: full
  diff_mode:
    description: Shows both links.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Make the release the current one
  h20.fleet.release_switch:
    release: "2026.11"
"""

RETURN = r"""
previous:
  description: Name of the release that C(previous) names then; empty where there is none.
  returned: always
  type: str
settled:
  description: Whether the release has answered since it became current and there is nothing to sweep, so that M(h20.fleet.release_sweep) has nothing to do.
  returned: always
  type: bool
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _releases


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "root": {"type": "path", "default": _releases.ROOT},
            "keep": {"type": "int", "default": 2},
            "driver_packages": {"type": "path", "default": _releases.DRIVER_PACKAGES},
        },
        supports_check_mode=True,
    )
    root, release = Path(module.params["root"]), module.params["release"]
    if not _releases.is_name(release):
        module.fail_json(msg=f"{release} cannot name a release -> letters, digits, dots, dashes, nothing else")
    if module.params["keep"] < 0:
        module.fail_json(msg=f"keep is {module.params['keep']} -> 0 keeps the current and the previous release alone")
    known = _releases.read(root).get(release)
    if known is None or known.definition is None:
        module.fail_json(
            msg=f"release {release} is not complete: {root}/releases/{release}/{_releases.RECORD} is not there"
            " -> run the stages that build it: --tags python_venv,vllm"
        )
    links = (_releases.PREVIOUS, _releases.CURRENT)  # in this order, see DOCUMENTATION
    before = {link: _releases.pointed(root, link) for link in links}
    after = {_releases.PREVIOUS: _releases.next_previous(root, release), _releases.CURRENT: release}
    settled = (
        before == after
        and _releases.has_settled(root, release)
        and not _releases.leftovers(root, release, module.params["keep"], Path(module.params["driver_packages"]))
    )
    for link in links:
        if before[link] != after[link] and not module.check_mode:
            try:
                _releases.point(root, link, after[link])
            except OSError as error:
                module.fail_json(
                    msg=f"{root}/{link} cannot be made a link to release {after[link]}: {error.strerror}"
                    f" -> {root / link} has to be a link or absent, and its disk must have room; current is still"
                    f" {_releases.pointed(root, _releases.CURRENT) or 'nothing'}"
                )
    module.exit_json(
        changed=before != after,
        previous=after[_releases.PREVIOUS],
        settled=settled,
        diff={"before": _text(before), "after": _text(after)},
    )


def _text(links: dict[str, str]) -> str:
    """The links as ls shows them; one that is not there has no line."""
    return "".join(f"{link} -> releases/{name}\n" for link, name in sorted(links.items()) if name)


if __name__ == "__main__":
    main()
