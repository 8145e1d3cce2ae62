#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read-only description of what a host serves."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: replica_info
short_description: Describe the release, the model and the instances of a host
version_added: 1.0.0
description:
  - Reads the current release, the verdict of acceptance, the configuration of every instance, the state of its unit and whether it is ready, and changes
    nothing.
options:
  current:
    description: Symbolic link to the release that serves.
    type: path
    default: /opt/vllm/current
  configuration:
    description: Folder of the configuration files of the instances.
    type: path
    default: /etc/vllm
  acceptance:
    description: File in which the stage acceptance keeps its record.
    type: path
    default: /var/lib/h20-fleet/acceptance.json
  runtime:
    description: Folder in which each instance and its watchdog keep its state.
    type: path
    default: /run/vllm
extends_documentation_fragment: [h20.fleet.attributes.read_only]
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See what the host serves
  h20.fleet.replica_info:
  register: replica
"""

RETURN = r"""
release:
  description: Name of the current release; empty where there is none.
  returned: always
  type: str
  sample: "2026.11"
model:
  description: Repository of the current release's model; empty where there is none.
  returned: always
  type: str
revision:
  description: Revision of the current release's model; empty where there is none.
  returned: always
  type: str
acceptance:
  description: Verdict, waivers, figures and what they are valid for, as the stage acceptance keeps them; empty where the host was never measured.
  returned: always
  type: dict
  sample: {verdict: accepted, measured: "2026-11-25T04:00:00+00:00", waivers: []}
instances:
  description:
    - Each configured instance, with name and state of its unit, and C(ready), which is true once it is warm and proved and as long as its watchdog takes
      nothing away.
    - C(proof) is what was seen then, and C(why) in it the reason for which it is not ready any more.
    - Its C(replica) and this host's C(rank) in it where it spans hosts. Of a host without the API C(ready) is that of the first.
  returned: always
  type: list
  elements: dict
  sample: [{name: deepseek-v3, state: active, ready: true, proof: {since: "2026-11-25T04:00:00+00:00", tokens_per_second: 4211.4}, replica: pair, rank: 0}]
"""

import json
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

#: What of the record is of use without the host.
KEPT = ("verdict", "measured", "profile", "backend", "key", "waivers", "figures")


def accepted(path: Path) -> dict[str, t.Any]:
    """The record of acceptance in short; {} where there is none, or none that can be used."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {name: record[name] for name in KEPT if name in record}
    except (OSError, ValueError, TypeError):
        return {}


def readiness(folder: Path) -> dict[str, t.Any]:
    """Whether an instance is ready, and what was seen of it when it became so."""
    ready = (folder / "ready").exists()
    try:
        return {
            "ready": ready,
            "proof": json.loads((folder / ("ready" if ready else "withdrawn")).read_text(encoding="utf-8")),
        }
    except (OSError, ValueError):
        return {"ready": False, "proof": {}}


def place(path: Path) -> dict[str, t.Any]:
    """The replica over several hosts that an instance is a part of, and the rank of this host; {} where it serves alone."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: plan[name] for name in ("replica", "rank") if name in plan}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "current": {"type": "path", "default": "/opt/vllm/current"},
            "configuration": {"type": "path", "default": "/etc/vllm"},
            "acceptance": {"type": "path", "default": "/var/lib/h20-fleet/acceptance.json"},
            "runtime": {"type": "path", "default": "/run/vllm"},
        },
        supports_check_mode=True,
    )
    try:
        record = json.loads((Path(module.params["current"]) / "release.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        record = {}
    systemctl = module.get_bin_path("systemctl", required=True)
    instances = []
    for path in sorted(Path(module.params["configuration"]).glob("*.yaml")):
        state = module.run_command(
            [systemctl, "show", "--value", "--property=ActiveState", f"vllm@{path.stem}.service"]
        )[1]
        instances.append(
            {
                "name": path.stem,
                "state": state.strip(),
                **readiness(Path(module.params["runtime"]) / path.stem),
                **place(path.with_suffix(".plan.json")),
            }
        )
    model = record.get("model", {})
    module.exit_json(
        changed=False,
        release=record.get("release", ""),
        model=model.get("repo", ""),
        revision=model.get("revision", ""),
        acceptance=accepted(Path(module.params["acceptance"])),
        instances=instances,
    )


if __name__ == "__main__":
    main()
