# SPDX-License-Identifier: Apache-2.0
"""Filter of the stage nccl: in what the hosts of a run differ from each other."""

from __future__ import annotations

DOCUMENTATION = r"""
name: nccl_differences
short_description: Name the hosts that differ from most of the others, and in what
version_added: 1.0.0
description:
  - Compares GPUs, how they are joined, driver, adapters with their links, rates, firmware, MTU and traffic class, addresses of RoCE, and further variables
    of NCCL, as the hosts of a run were read. Names of interfaces may differ.
  - Hosts of which the network was read are those of a replica over several hosts, and are compared with each other. So are the others, which serve
    alone, and are warned of.
positional: networks, settings
options:
  _input:
    description: What M(h20.fleet.gpu_info) returned, by host.
    type: dict
    required: true
  networks:
    description: What M(h20.fleet.nccl_network_info) returned, by host; empty or skipped where a replica is of one node.
    type: dict
    default: {}
  settings:
    description: Further variables of NCCL that the site sets, by host.
    type: dict
    default: {}
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show in what the hosts differ
  ansible.builtin.debug:
    msg: "{{ {'h20-01': gpu_1, 'h20-02': gpu_2, 'h20-03': gpu_3} | h20.fleet.nccl_differences }}"
"""

RETURN = r"""
_value:
  description: By host that differs, one line with all in which it does, and a remedy.
  type: dict
"""

import typing as t

from ansible.utils.display import Display
from ansible_collections.h20.fleet.plugins.module_utils import _agreement

display = Display()


def nccl_differences(
    gpus: t.Mapping[str, t.Any],
    networks: t.Mapping[str, t.Any] | None = None,
    settings: t.Mapping[str, t.Any] | None = None,
) -> dict[str, str]:
    """One line a host that differs."""
    read = {host: _read((networks or {}).get(host)) for host in gpus}
    lines: dict[str, str] = {}
    for together in (True, False):
        known = {
            host: _agreement.traits(gpu, read[host], (settings or {}).get(host) or {})
            for host, gpu in gpus.items()
            if bool(read[host]) is together
        }
        told = _agreement.lines(_agreement.differences(known))
        for line in [] if together else told.values():
            display.warning(line)
        lines |= told
    return lines


def _read(network: t.Mapping[str, t.Any] | None) -> t.Mapping[str, t.Any]:
    """What was read of the network, {} where the task was skipped."""
    return network if network and "gids" in network else {}


class FilterModule:
    """Filters of the stage nccl."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"nccl_differences": nccl_differences}
