# SPDX-License-Identifier: Apache-2.0
"""Filter that judges the waivers of a site."""

from __future__ import annotations

DOCUMENTATION = r"""
name: waiver_errors
short_description: Say what is wrong with the waivers of a site
version_added: 1.0.0
description: A waiver bears one check on named hosts, for a reason and until a date that is not far. One that has expired is no error; it does not help.
options:
  _input:
    description: The waivers, C(fleet_waivers).
    type: list
    elements: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Refuse waivers that cannot hold
  ansible.builtin.assert:
    that: fleet_waivers | h20.fleet.waiver_errors | length == 0
"""

RETURN = r"""
_value:
  description: A line for each error, with the remedy.
  type: list
  elements: str
"""

import datetime
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _acceptance


def waiver_errors(waivers: list[dict[str, t.Any]]) -> list[str]:
    """What is wrong with them today."""
    return _acceptance.waiver_errors(waivers, datetime.datetime.now(datetime.timezone.utc).date())


class FilterModule:
    """Filters of the acceptance stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"waiver_errors": waiver_errors}
