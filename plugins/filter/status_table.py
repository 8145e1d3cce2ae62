# SPDX-License-Identifier: Apache-2.0
"""Filter of the status verb."""

from __future__ import annotations

DOCUMENTATION = r"""
name: status_table
short_description: Show what the hosts of a fleet serve as a table
version_added: 1.0.0
description: One line a host and instance; a host that was not reached says so.
positional: replicas, gpus
options:
  _input:
    description: Names of the hosts.
    type: list
    elements: str
    required: true
  replicas:
    description: What M(h20.fleet.replica_info) returned, by host; a host that was not reached is absent.
    type: dict
    required: true
  gpus:
    description: What M(h20.fleet.gpu_info) returned, by host; a host that was not reached is absent.
    type: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show the fleet
  ansible.builtin.debug:
    msg: "{{ ansible_play_hosts_all | h20.fleet.status_table(replicas, gpus) }}"
"""

RETURN = r"""
_value:
  description: The table as text.
  type: str
"""

import datetime
import typing as t

HEADER = ("host", "release", "model", "GPUs", "acceptance", "instance", "state")


def acceptance(record: dict[str, t.Any]) -> str:
    """The verdict in a word or two."""
    verdict = record.get("verdict")
    if verdict == "waived":
        until = min(waiver["until"] for waiver in record["waivers"])
        expired = until < datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return f"waiver expired {until}" if expired else f"waived until {until}"
    return verdict if verdict in ("accepted", "refused") else "not measured"


def service(instance: dict[str, t.Any]) -> str:
    """The state of an instance: since when it is ready, or why it is not."""
    proof = instance.get("proof") or {}
    if instance.get("ready"):
        return f"ready since {proof['since']}"
    return f"not ready: {proof['why']}" if proof.get("why") else str(instance["state"])


def status_table(hosts: list[str], replicas: dict[str, t.Any], gpus: dict[str, t.Any]) -> str:
    """The table, columns aligned; a host without an instance has one line all the same."""
    rows = [HEADER]
    for host in hosts:
        if host not in replicas or host not in gpus:
            rows.append((host, "-", "-", "-", "-", "-", "unreachable"))
            continue
        replica, gpu = replicas[host], gpus[host]
        model = f"{replica['model'].rpartition('/')[2]}@{replica['revision'][:8]}" if replica["model"] else "-"
        answering = len(gpu["smi"]["gpus"]) if gpu["smi"] else 0
        for instance in replica["instances"] or [{"name": "-", "state": "not set up"}]:
            counts = f"{answering}/{len(gpu['pci_gpus'])}"
            accepted = acceptance(replica.get("acceptance") or {})
            name = (
                f"{instance['name']} ({instance['replica']}, rank {instance['rank']})"
                if instance.get("replica")
                else instance["name"]
            )
            rows.append((host, replica["release"] or "-", model, counts, accepted, name, service(instance)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


class FilterModule:
    """Filters of the status verb."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"status_table": status_table}
