#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Refuse to run a stage on a host that lacks what the stage stands on."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: stage_requirements
short_description: Check that the stages before this one have done their work on a host
version_added: 1.0.0
description:
  - Looks for what earlier stages leave behind, and fails with the name of each stage that is missing and the command that runs it.
  - In check mode it reports instead of failing, because a stage that has not run yet is what check mode on a new host is about.
options:
  stage:
    description: Stage that is about to run.
    type: str
    required: true
  requires:
    description: What the stage stands on.
    type: list
    elements: dict
    required: true
    suboptions:
      stage:
        description: Stage that makes the path.
        type: str
        required: true
      path:
        description: File, folder or program name; a bare name is looked up in C(PATH).
        type: str
        required: true
      agrees:
        description: Whether the path is a program that has to agree, that is to end with 0. Where it does not, its own words are the failure.
        type: bool
        default: false
  packages:
    description: Debian packages that the stage itself brings, asked of dpkg in the same look, so that apt is called only where one is missing.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Reads only; in check mode missing requirements are returned, not raised.
    support: full
  diff_mode:
    description: Nothing changes, so there is no diff.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See whether the stages before this one have run
  h20.fleet.stage_requirements:
    stage: vllm
    requires:
      - stage: python_venv
        path: /opt/vllm/releases/2026.11/bin/python
"""

RETURN = r"""
missing:
  description: Requirements that are not there, each with stage and path.
  returned: always
  type: list
  elements: dict
missing_packages:
  description: Those of O(packages) that are not installed.
  returned: always
  type: list
  elements: str
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _dpkg, _programs


def not_installed(names: t.Sequence[str], run: _programs.Runner) -> list[str]:
    """The packages of ``names`` that dpkg does not call installed."""
    if not names:
        return []
    answer = run([*_dpkg.QUERY, *names], _programs.TIMEOUT)  # ends with 1 where one of them is unknown
    installed = {package.name for package in _dpkg.parse_packages(answer.out) if package.status == "installed"}
    return [name for name in names if name not in installed]


def refusals(entries: t.Sequence[dict[str, t.Any]]) -> list[tuple[dict[str, t.Any], str]]:
    """Those whose program does not agree, with its own words."""
    answers = [(entry, _programs.run([entry["path"]], 2 * _programs.TIMEOUT)) for entry in entries]
    return [(entry, answer.error.removeprefix("error: ")) for entry, answer in answers if answer.error]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "stage": {"type": "str", "required": True},
            "requires": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "stage": {"type": "str", "required": True},
                    "path": {"type": "str", "required": True},
                    "agrees": {"type": "bool", "default": False},
                },
            },
            "packages": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    agreeing = {requirement["path"] for requirement in module.params["requires"] if requirement.pop("agrees")}
    missing = [
        requirement
        for requirement in module.params["requires"]
        if not (
            Path(requirement["path"]).exists()
            if "/" in requirement["path"]
            else module.get_bin_path(requirement["path"])
        )
    ]
    if missing and not module.check_mode:
        stages = list(dict.fromkeys(requirement["stage"] for requirement in missing))
        lacks = ", ".join(f"{requirement['path']} (stage {requirement['stage']})" for requirement in missing)
        module.fail_json(
            msg=f"stage {module.params['stage']} stands on what this host lacks: {lacks}"
            f" -> run the missing stage first: --tags {','.join([*stages, module.params['stage']])}",
            missing=missing,
        )
    refusing = refusals(
        [entry for entry in module.params["requires"] if entry["path"] in agreeing and entry not in missing]
    )
    if refusing and not module.check_mode:
        module.fail_json(
            msg="; ".join(words for _entry, words in refusing), missing=[entry for entry, _words in refusing]
        )
    missing += [entry for entry, _words in refusing]
    missing_packages = not_installed(module.params["packages"], _programs.run)
    module.exit_json(changed=False, missing=missing, missing_packages=missing_packages)


if __name__ == "__main__":
    main()
