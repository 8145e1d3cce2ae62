#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Make one proved revision of a model present on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_revision
short_description: Fetch and prove one revision of a model through its systemd unit
version_added: 1.0.0
description:
  - Asks the fetch program whether the revision is complete, and starts the fetch unit where it is not.
  - The unit does the work and goes on when the controller loses the connection; running the task again joins it.
  - A disk that is too small is refused before the first byte.
options:
  program:
    description: Fetch program on the host.
    type: path
    required: true
  job:
    description: Job file of the revision, which names manifest and destination.
    type: path
    required: true
  unit:
    description: Oneshot systemd unit that runs the fetch program with the job.
    type: str
    required: true
attributes:
  check_mode:
    description: Reports whether anything would be fetched.
    support: full
  diff_mode:
    description: The change is bytes on disk; no diff is shown.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Fetch the revision
  h20.fleet.model_revision:
    program: /usr/local/lib/h20-fleet/model_fetch.py
    job: /etc/h20-fleet/models/deepseek.job.json
    unit: model-fetch@deepseek.service
"""

RETURN = r"""
state:
  description: What the fetch program found before anything was done (complete, missing_bytes, free_bytes, problems).
  returned: always
  type: dict
"""

import json
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule

#: Share of the missing bytes that must stay free beside them, for the filesystem's own needs.
MARGIN = 0.05
GIB = 1024**3


def inspect(module: AnsibleModule) -> dict[str, t.Any]:
    """What the fetch program says of the destination."""
    rc, out, err = module.run_command([sys.executable, module.params["program"], "inspect", module.params["job"]])
    if rc != 0:
        module.fail_json(msg=f"the fetch program could not read {module.params['job']}: {err or out}")
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
    state = inspect(module)
    if state["complete"] or module.check_mode:
        module.exit_json(changed=not state["complete"], state=state)
    needed = int(state["missing_bytes"] * (1 + MARGIN))
    if state["free_bytes"] < needed:
        module.fail_json(
            msg=f"{state['destination']} needs {needed / GIB:.2f} GiB more and its filesystem has {state['free_bytes'] / GIB:.2f} GiB free"
            f" -> free {(needed - state['free_bytes']) / GIB:.2f} GiB, or set fleet_model_root to a larger disk",
            state=state,
        )
    systemctl = module.get_bin_path("systemctl", required=True)
    rc = module.run_command([systemctl, "start", module.params["unit"]])[0]
    if rc != 0:
        journalctl = module.get_bin_path("journalctl", required=True)
        journal = module.run_command(
            [journalctl, "--unit", module.params["unit"], "--lines", "20", "--output", "cat", "--no-pager"]
        )[1]
        reasons = [line.removeprefix("error: ") for line in journal.splitlines() if line.startswith("error: ")]
        module.fail_json(
            msg=reasons[-1] if reasons else f"{module.params['unit']} failed", journal=journal.splitlines(), state=state
        )
    module.exit_json(changed=True, state=state)


if __name__ == "__main__":
    main()
