#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Note which packages a host has before a stage brings its own."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: package_ledger
short_description: Note what a host has of packages and holds before a stage brings its own
version_added: 1.0.0
description:
  - To be called right before packages are installed or held. Notes on the host which of them are not there yet, so that removal knows later what came by the
    collection, what was there before it, and what an operator has installed since.
options:
  stage:
    description: Stage that is about to bring them.
    type: str
    required: true
  packages:
    description: Packages that it will ask for, as apt-get takes them; C(name=version) counts as its name, and C(name-), which goes, not at all.
    type: list
    elements: str
    default: []
  holds:
    description: Packages that it will hold.
    type: list
    elements: str
    default: []
  path:
    description: File of the ledger.
    type: path
    default: /var/lib/h20-fleet/packages.json
attributes:
  check_mode:
    description: Reports whether something would be noted.
    support: full
  diff_mode:
    description: The ledger is the collection's own memory and nobody's setting.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Note what the host has before it
  h20.fleet.package_ledger:
    stage: model
    packages: [aria2, mktorrent]
"""

RETURN = r"""
asked:
  description: Stages that have asked for each package that was not there before.
  returned: always
  type: dict
  sample: {aria2: [model]}
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _ledger, _programs


def names(packages: t.Iterable[str]) -> list[str]:
    """The packages that arguments of apt-get ask for."""
    return [package.partition("=")[0] for package in packages if not package.endswith("-")]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "stage": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "holds": {"type": "list", "elements": "str", "default": []},
            "path": {"type": "path", "default": str(_ledger.PATH)},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    try:
        known = _ledger.Ledger.load(path)
        host = _ledger.Host.read(_programs.run)
        noted = (known or _ledger.Ledger()).noted(
            host, module.params["stage"], names(module.params["packages"]), module.params["holds"]
        )
        changed = noted != known
        if changed and not module.check_mode:
            noted.save(path)
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"what the host has of packages cannot be noted: {error} -> mend that, then run the stage again"
        )
    module.exit_json(changed=changed, asked={name: list(stages) for name, stages in noted.asked.items()})


if __name__ == "__main__":
    main()
