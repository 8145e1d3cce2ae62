# SPDX-License-Identifier: Apache-2.0
"""Filter of the serving stage: what of the inventory and of a run would split a replica."""

from __future__ import annotations

DOCUMENTATION = r"""
name: replica_errors
short_description: Say what stands against one replica over several hosts
version_added: 1.0.0
description:
  - Judges the inventory and the run alone and asks no host. Hosts that are in no group of the replica's name or in that of another, hosts of the replica that
    the run leaves out, and batches that split it.
positional: host, groups, named, hosts, serial
options:
  _input:
    description: Name of the replica, C(fleet_replica); empty for a host that serves alone.
    type: str
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
  groups:
    description: The groups of the inventory.
    type: dict
    required: true
  named:
    description: What the hosts have as C(fleet_replica), by host.
    type: dict
    required: true
  hosts:
    description: The hosts of the run, in their order.
    type: list
    elements: str
    required: true
  serial:
    description: How the run is cut into batches.
    type: raw
    default: 100%
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Refuse a replica that would be split
  ansible.builtin.fail:
    msg: "{{ errors | join('\n') }}"
  when: errors | length > 0
  vars:
    errors: "{{ fleet_replica | h20.fleet.replica_errors(inventory_hostname, groups, {'h20-01': 'pair', 'h20-02': 'pair'}, ansible_play_hosts_all) }}"
"""

RETURN = r"""
_value:
  description: A sentence with its remedy for each thing that stands against it.
  type: list
  elements: str
"""

import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _replica


def replica_errors(
    name: str,
    host: str,
    groups: t.Mapping[str, t.Sequence[str]],
    named: t.Mapping[str, str],
    hosts: t.Sequence[str],
    serial: t.Any = "100%",
) -> list[str]:
    """A sentence for each thing that stands against it; see DOCUMENTATION."""
    return _replica.errors(name, host, groups, named, _replica.Run(hosts, serial)) if name else []


class FilterModule:
    """Filters of the serving stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"replica_errors": replica_errors}
