# SPDX-License-Identifier: Apache-2.0
"""Filter that derives floors from hosts that are known to be good."""

from __future__ import annotations

DOCUMENTATION = r"""
name: acceptance_calibration
short_description: Derive floors from the records of accepted hosts
version_added: 1.0.0
description:
  - Of each figure the median, the median absolute deviation (MAD), the least and the most, and the floor that follows, which is the median less five MADs
    and at least 3 percent.
  - Fails with fewer than three accepted hosts, and where they are of different hardware.
options:
  _input:
    description: The record of each host, by host.
    type: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the floors
  ansible.builtin.debug:
    msg: "{{ records | h20.fleet.acceptance_calibration }}"
"""

RETURN = r"""
_value:
  description: Profile, releases, drivers, hosts, date of the last measurement, and the figures.
  type: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.h20.fleet.plugins.module_utils import _acceptance


def acceptance_calibration(records: dict[str, dict[str, t.Any]]) -> dict[str, t.Any]:
    """The calibration; its errors are the operator's."""
    try:
        return _acceptance.calibrate(records)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters of the calibrate verb."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"acceptance_calibration": acceptance_calibration}
