# SPDX-License-Identifier: Apache-2.0
"""Filter that tells which all-reduce bandwidth a host has to reach."""

from __future__ import annotations

DOCUMENTATION = r"""
name: allreduce_floor
short_description: Say which bus bandwidth all-reduce has to reach on a host
version_added: 1.0.0
description:
  - That of a calibration of the same hardware, else what the site names, else that of the hardware profile.
  - Where a waiver for the check C(ALLREDUCE) holds, the stage nccl has nothing to refuse. The stage acceptance judges then, and shows the waiver.
options:
  _input:
    description: Name of the hardware profile.
    type: str
    required: true
  hardware:
    description: Figures of the profile.
    type: dict
    required: true
  named:
    description: What the site names; V(0) names none.
    type: float
    required: true
  calibration:
    description: C(fleet_calibration).
    type: dict
    required: true
  waivers:
    description: C(fleet_waivers).
    type: list
    elements: dict
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the floor
  ansible.builtin.debug:
    msg: >-
      {{ gpu.profile | h20.fleet.allreduce_floor(hardware=gpu.profiles[gpu.profile], named=0, calibration=fleet_calibration,
         waivers=fleet_waivers, host=inventory_hostname) }}
"""

RETURN = r"""
_value:
  description: The floor in GB/s; 0 where there is none.
  type: float
"""

import datetime
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _acceptance

FIGURE = "allreduce_gb_s"


def allreduce_floor(
    profile: str,
    hardware: dict[str, t.Any],
    named: float,
    calibration: dict[str, t.Any],
    waivers: list[dict[str, t.Any]],
    host: str,
) -> float:
    """The floor that holds today."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    held, _expired = _acceptance.waivers_of(waivers, host, today)
    if any(waiver["check"] == _acceptance.FIGURES[FIGURE].check for waiver in held):
        return 0.0
    site = {FIGURE: named} if float(named) else {}
    return _acceptance.floors(hardware, site, calibration, profile)[FIGURE][0]


class FilterModule:
    """Filters of the nccl stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"allreduce_floor": allreduce_floor}
