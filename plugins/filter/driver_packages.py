# SPDX-License-Identifier: Apache-2.0
"""Filter of the driver stage: the packages of its one transaction."""

from __future__ import annotations

DOCUMENTATION = r"""
name: driver_packages
short_description: Resolve the plan of a driver to packages and exact versions
version_added: 1.0.0
description:
  - Only what NVIDIA's repository offers counts, since archives must not mix; the kernel's headers come from the distribution.
  - An installed package of the old driver that the new one does not have is removed in the same transaction.
positional: madison, repository
options:
  _input:
    description: What P(h20.fleet.driver_plan#filter) returned.
    type: dict
    required: true
  madison:
    description: Lines of C(apt-cache madison) for all packages of the plan.
    type: list
    elements: str
    required: true
  repository:
    description: Address of NVIDIA's repository.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the transaction
  ansible.builtin.debug:
    msg: "{{ (plan | h20.fleet.driver_packages(madison.stdout_lines, 'http://mirror.test/compute/cuda/repos/debian12/x86_64/')).packages }}"
"""

RETURN = r"""
_value:
  description: packages (name=version, name, or name- for one that goes) as apt-get takes them, and gone (what no source has, with the versions it has).
  type: dict
"""

import typing as t


def driver_packages(plan: dict[str, t.Any], madison: list[str], repository: str) -> dict[str, list[str]]:
    """The arguments of apt-get, and what is gone."""
    everywhere: set[str] = set()
    offered: dict[str, list[str]] = {}
    for line in madison:
        name, version, source = (part.strip() for part in line.split("|", 2))
        everywhere.add(name)
        if repository.rstrip("/") in source:
            offered.setdefault(name, []).append(version)
    packages, gone = [], []
    for name, upstream in plan["required"].items():
        version = _newest(offered.get(name, []), upstream)
        if version:
            packages.append(f"{name}={version}")
        else:
            gone.append(
                " ".join(filter(None, (name, upstream))) + f" (there: {', '.join(offered.get(name, [])) or 'none'})"
            )
    for name, upstream in plan["move"].items():
        version = _newest(offered.get(name, []), upstream)
        packages.append(f"{name}={version}" if version else f"{name}-")
    gone += [f"{name} (there: none)" for name in plan["headers"] if name not in everywhere]
    packages += [name for name in plan["headers"] if name in everywhere]
    return {"packages": packages + [f"{name}-" for name in plan["remove"]], "gone": gone}


def _newest(versions: list[str], upstream: str) -> str:
    """The first, which is the newest, of this upstream version; of any where it is empty."""
    return next((version for version in versions if upstream in ("", _upstream(version))), "")


def _upstream(version: str) -> str:
    """A version without its epoch and revision."""
    return version.rpartition(":")[2].rpartition("-")[0]


class FilterModule:
    """Filters of the driver stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"driver_packages": driver_packages}
