# SPDX-License-Identifier: Apache-2.0
"""Filters of the stage nccl: the variables of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nccl_plan
short_description: Work out the variables of NCCL for a host
version_added: 1.0.0
description:
  - Turns the choices of a site and the adapters of a host into what C(/etc/nccl.conf) shall hold, says what stands against it, and warns of what it costs.
  - Ansible shows an equal warning once a run, however many hosts it is of.
positional: choices, network
options:
  _input:
    description: What M(h20.fleet.gpu_info) returned.
    type: dict
    required: true
  choices:
    description: >-
      nodes (single or multi), debug, ib_disable, net_gdr_level and p2p_level (auto, or a level), topo_file (path on the host, empty for none),
      socket_interfaces, hcas, roce_family (ipv4 or ipv6), peermem (bool), settings (further variables, which win).
    type: dict
    required: true
  network:
    description: What M(h20.fleet.nccl_network_info) returned; empty where a replica is of one node.
    type: dict
    default: {}
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the variables
  ansible.builtin.debug:
    msg: "{{ (gpu | h20.fleet.nccl_plan(choices)).settings }}"
"""

RETURN = r"""
_value:
  description: >-
    settings (variables by name), refusals and warnings (lines, each with its remedy), and gpudirect, the way by which adapters reach GPU memory
    (DMA-BUF, nvidia_peermem or none; empty where no adapter is used).
  type: dict
"""

import typing as t

from ansible.utils.display import Display
from ansible_collections.h20.fleet.plugins.module_utils import _nccl

display = Display()


def nccl_plan(
    gpu: dict[str, t.Any], choices: dict[str, t.Any], network: dict[str, t.Any] | None = None
) -> dict[str, t.Any]:
    """The plan as a dict; its warnings are shown as well."""
    plan = _nccl.plan(gpu, choices, network or {})
    for warning in plan.warnings:
        display.warning(warning)
    return plan._asdict()


class FilterModule:
    """Filters of the stage nccl."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"nccl_plan": nccl_plan}
