#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read which releases a host has."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: release_info
short_description: Read the releases of a host, what is in them, and what points at them
version_added: 1.0.0
description:
  - A release carries its own definition, so that a host can go back to one that no inventory names any more.
options:
  root:
    description: Folder of the releases and the links.
    type: path
    default: /opt/vllm
  mark:
    description: File that is there while the host is out of service.
    type: path
    default: /var/lib/h20-fleet/out-of-service
  module_version:
    description: File in which the loaded driver says its version.
    type: path
    default: /sys/module/nvidia/version
extends_documentation_fragment:
  - h20.fleet.attributes.read_only
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Read the releases
  h20.fleet.release_info:
  register: found
"""

RETURN = r"""
current:
  description: Name of the release that C(current) names; empty where there is none.
  returned: always
  type: str
previous:
  description: Name of the release that C(previous) names; empty where there is none.
  returned: always
  type: str
rollback:
  description: Name of the release that a way back leads to which is under way; empty where there is none.
  returned: always
  type: str
driver:
  description: Version of the driver that is loaded; empty where none is.
  returned: always
  type: str
out_of_service:
  description: Whether the stage of the driver has taken the host out of service.
  returned: always
  type: bool
releases:
  description: Each release by its name, with complete, served (whether it ever has) and definition (null where it is not complete).
  returned: always
  type: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _releases


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": _releases.ROOT},
            "mark": {"type": "path", "default": "/var/lib/h20-fleet/out-of-service"},
            "module_version": {"type": "path", "default": "/sys/module/nvidia/version"},
        },
        supports_check_mode=True,
    )
    version = Path(module.params["module_version"])
    root = Path(module.params["root"])
    links = (_releases.CURRENT, _releases.PREVIOUS, _releases.ROLLBACK)
    module.exit_json(
        changed=False,
        driver=version.read_text(encoding="ascii").strip() if version.exists() else "",
        out_of_service=Path(module.params["mark"]).exists(),
        releases={
            name: {
                "complete": item.definition is not None,
                "served": item.served > 0,
                "definition": item.definition,
            }
            for name, item in _releases.read(root).items()
        },
        **{link: _releases.pointed(root, link) for link in links},
    )


if __name__ == "__main__":
    main()
