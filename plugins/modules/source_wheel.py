#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Have a wheel built from source by a unit of systemd, or join a build that runs."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: source_wheel
short_description: Have a wheel built from source by a unit of systemd
version_added: 1.0.0
description:
  - Asks the build program what is there, and starts its unit where the wheel or its lock is missing.
  - The unit goes on when the connection is lost; a second call waits for the build that runs.
options:
  program:
    description: The build program on the host. In check mode it may be absent.
    type: path
    required: true
  job:
    description: JSON file that describes the build.
    type: path
    required: true
  unit:
    description: Unit of type oneshot that runs the program with the job.
    type: str
    required: true
attributes:
  check_mode:
    description: Reports whether something would be built or written.
    support: full
  diff_mode:
    description: There is nothing to show of a wheel.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Build the wheel, once
  h20.fleet.source_wheel:
    program: /usr/local/lib/h20-fleet/wheel_build.py
    job: /var/lib/h20-fleet/build/0f1e2d3c4b5a6978/job.json
    unit: vllm-build@0f1e2d3c4b5a6978.service
"""

RETURN = r"""
built:
  description: Whether a wheel was built, or in check mode would be; false where one of the same inputs was there.
  returned: always
  type: bool
wheel:
  description: File name, version, sha256, and the build's seconds, largest process and disk space (MiB); null where there is none yet.
  returned: always
  type: dict
"""

import json
import sys
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def inspect(module: AnsibleModule) -> dict[str, t.Any]:
    """What the build program says of the job."""
    rc, out, err = module.run_command([sys.executable, module.params["program"], "inspect", module.params["job"]])
    if rc != 0:
        module.fail_json(msg=f"{module.params['job']}: {(err or out).strip().removeprefix('error: ')}")
    state: dict[str, t.Any] = json.loads(out)
    return state


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "job": {"type": "path", "required": True},
            "unit": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode and not (Path(module.params["program"]).exists() and Path(module.params["job"]).exists()):
        module.exit_json(changed=True, built=True, wheel=None)
    state = inspect(module)
    if state["complete"] or module.check_mode:
        module.exit_json(changed=not state["complete"], built=state["to_build"], wheel=state["wheel"])
    if state["obstacles"]:
        module.fail_json(msg="; ".join(state["obstacles"]))
    systemctl = module.get_bin_path("systemctl", required=True)
    journalctl = module.get_bin_path("journalctl", required=True)
    module.run_command([systemctl, "daemon-reload"], check_rc=True)
    unit = module.params["unit"]
    if module.run_command([systemctl, "start", unit])[0] != 0:
        show = [journalctl, "--unit", unit, "--lines", "40", "--output", "cat", "--no-pager"]
        journal = module.run_command(show)[1].splitlines()
        reasons = [line.removeprefix("error: ") for line in journal if line.startswith("error: ")]
        module.fail_json(
            msg=f"{unit}: {reasons[-1] if reasons else 'it was killed, of memory where the journal says so'}"
            f" -> journalctl -u {unit} has all of it; the same command builds again",
            journal=journal,
        )
    after = inspect(module)
    if not after["complete"]:
        module.fail_json(msg=f"{unit} ended and the wheel is not there -> journalctl -u {unit}")
    module.exit_json(changed=True, built=state["to_build"], wheel=after["wheel"])


if __name__ == "__main__":
    main()
