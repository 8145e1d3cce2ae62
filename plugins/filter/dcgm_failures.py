# SPDX-License-Identifier: Apache-2.0
"""Filter that reads DCGM's diagnosis."""

from __future__ import annotations

DOCUMENTATION = r"""
name: dcgm_failures
short_description: Name the tests of a DCGM diagnosis that failed
version_added: 1.0.0
description: Reads what C(dcgmi diag --json) of DCGM 4 printed. Text around the document, and text that is none, are borne.
options:
  _input:
    description: What it printed.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show what failed
  ansible.builtin.debug:
    msg: "{{ diagnosis.stdout | h20.fleet.dcgm_failures | join('; ') }}"
"""

RETURN = r"""
_value:
  description: A line for each test and entity that failed, with DCGM's warnings; the text itself where it holds no document.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _dcgm


class FilterModule:
    """Filters of the driver stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"dcgm_failures": _dcgm.failures}
