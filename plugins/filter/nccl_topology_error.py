# SPDX-License-Identifier: Apache-2.0
"""Filter of the stage nccl: the check of a topology file."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nccl_topology_error
short_description: Say why a text is no topology file of NCCL
version_added: 1.0.0
description:
  - NCCL ends with the first communicator where its topology file is no XML or has another root element; this says so before the file reaches a host.
options:
  _input:
    description: Content of the file.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Check a file
  ansible.builtin.assert:
    that: lookup('ansible.builtin.file', 'topology.xml') | h20.fleet.nccl_topology_error == ''
"""

RETURN = r"""
_value:
  description: What is wrong; empty where nothing is.
  type: str
"""

import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _nccl


class FilterModule:
    """Filters of the stage nccl."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"nccl_topology_error": _nccl.topology_error}
