# SPDX-License-Identifier: Apache-2.0
"""Filter of the way back: which release each host goes back to."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rollback_plan
short_description: Say which release each host goes back to, and which cannot
version_added: 1.0.0
description:
  - A host goes to the release that is asked for, or to the one that a way back was cut off on, or to its previous one.
  - Where a way back was cut off on some hosts and is through on others, the same command finishes it and takes nobody forward again.
  - Where a change began with the driver and never came to the switch, the way back is the current release with its own driver, not the one before it.
  - All hosts of a run go to one release. Where they would not, as after an upgrade that stopped half way, nothing is guessed.
positional: wanted
options:
  _input:
    description: What M(h20.fleet.release_info) returned, by host.
    type: dict
    required: true
  wanted:
    description: Name of a release; empty for each host's previous one.
    type: str
    default: ""
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show what each host goes back to
  ansible.builtin.debug:
    msg: "{{ {'h20-01': found} | h20.fleet.rollback_plan }}"
"""

RETURN = r"""
_value:
  description: By host, release (empty where there is none) and refusals (lines with their remedies).
  type: dict
"""

import typing as t


def rollback_plan(hosts: dict[str, dict[str, t.Any]], wanted: str = "") -> dict[str, dict[str, t.Any]]:
    """Release and refusals of each host; see RETURN."""
    begun = {info["rollback"] for info in hosts.values() if info["rollback"]}
    unfinished = min(begun) if len(begun) == 1 else ""
    targets = {host: wanted or _target(info, unfinished) for host, info in hosts.items()}
    plan: dict[str, dict[str, t.Any]] = {
        host: {"release": targets[host], "refusals": _refusals(info, targets[host], wanted)}
        for host, info in hosts.items()
    }
    open_to = sorted({entry["release"] for entry in plan.values() if not entry["refusals"]})
    if len(open_to) > 1:
        for entry in plan.values():
            if not entry["refusals"]:
                entry["refusals"].append(
                    f"its way back leads to {entry['release']}, that of others to"
                    f" {', '.join(name for name in open_to if name != entry['release'])}"
                    " -> name one for all by -e fleet_rollback_to=<release>, or some of the hosts by --limit"
                )
    return plan


def _target(info: dict[str, t.Any], unfinished: str) -> str:
    """Where the host goes by itself; "" where it has nowhere to go."""
    if info["rollback"]:
        return str(info["rollback"])
    if unfinished and info["current"] == unfinished:
        return unfinished
    if _on_its_way(info):
        return str(info["current"])
    return str(info["previous"]) if info["previous"] != info["current"] else ""


def _on_its_way(info: dict[str, t.Any]) -> bool:
    """Whether a change that began with the driver did not get as far as the switch, so that the way back is what is current."""
    current = info["releases"].get(info["current"]) or {}
    wanted = ((current.get("definition") or {}).get("driver") or {}).get("version", "")
    return bool(current.get("complete")) and (info["out_of_service"] or info["driver"] not in ("", wanted))


def _refusals(info: dict[str, t.Any], target: str, wanted: str) -> list[str]:
    complete = sorted(name for name, item in info["releases"].items() if item["complete"] and name != info["current"])
    there = f"beside {info['current'] or 'none that serves'} it has {', '.join(complete) or 'no complete release'}"
    remedy = (
        "name one of them by -e fleet_rollback_to=<release>"
        if complete
        else "leave it out by --limit, or build one by the playbook site"
    )
    if not target:
        return [f"there is no previous release; {there} -> {remedy}"]
    if target not in info["releases"]:
        return [f"release {target} is not there; {there} -> {remedy}"]
    if not info["releases"][target]["complete"]:
        what = f"release {target}" if wanted else f"the release to go back to, {target},"
        return [f"{what} is not complete, its release.json is not there; {there} -> {remedy}"]
    return []


class FilterModule:
    """Filters of the way back."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"rollback_plan": rollback_plan}
