# SPDX-License-Identifier: Apache-2.0
"""One replica over several hosts: who belongs to it, and what of the inventory and of a run would split it.

A replica is a group of the inventory that its hosts name in ``fleet_replica``. The order in the group is the rank, and the first host has the API.
"""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True)
class Run:
    """The hosts of a run in their order, and how it is cut into batches (``serial`` of a play)."""

    hosts: t.Sequence[str]
    serial: t.Any = "100%"


def batches(hosts: t.Sequence[str], serial: t.Any) -> list[list[str]]:
    """The batches as Ansible makes them of a number, a share, or a list of these, of which the last repeats."""
    sizes = list(serial) if isinstance(serial, (list, tuple)) else [serial]
    rest, found = list(hosts), []
    while rest:
        size = _size(sizes.pop(0) if len(sizes) > 1 else sizes[0], len(hosts))
        found.append(rest[:size])
        rest = rest[size:]
    return found


def _size(serial: t.Any, hosts: int) -> int:
    """Hosts of a batch; 0 and what is no number mean all of them, which Ansible itself refuses or takes so."""
    text = str(serial)
    try:
        size = int(int(text[:-1]) / 100 * hosts) or 1 if text.endswith("%") else int(text)
    except ValueError:
        return hosts
    return size if size > 0 else hosts


def errors(
    name: str, host: str, groups: t.Mapping[str, t.Sequence[str]], named: t.Mapping[str, str], run: Run
) -> list[str]:
    """What stands against a replica by the inventory and the run; ``named`` is what each host has as ``fleet_replica``."""
    members = groups.get(name)
    if members is None:
        return [
            f"fleet_replica {name} is no group of the inventory -> put the hosts of the replica into a group {name}, the one with the API first"
        ]
    if host not in members:
        return [f"fleet_replica is {name}, and {host} is not in that group -> set it in the variables of the group"]
    if len(members) < 2:
        return [f"replica {name} has one host -> leave fleet_replica empty, or add the others to the group"]
    strangers = [f"{member} ({named.get(member) or 'none'})" for member in members if named.get(member) != name]
    if strangers:
        return [
            f"hosts of group {name} have another fleet_replica: {', '.join(strangers)} -> a host serves one replica; take it out of one group"
        ]
    away = [member for member in members if member not in run.hosts]
    if away:
        return [
            f"replica {name} is one, and {', '.join(away)} is not in this run -> --limit names all its hosts ({','.join(members)}) or none"
        ]
    if not any(set(members) <= set(batch) for batch in batches(run.hosts, run.serial)):
        return [
            f"replica {name} is one, and fleet_serial {run.serial} splits it -> let every batch hold whole replicas, for example -e fleet_serial={len(members)}"
        ]
    return []
