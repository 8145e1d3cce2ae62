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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _jobs

#: Share of the missing bytes that must stay free beside them, for the filesystem's own needs.
MARGIN = 0.05
GIB = 1024**3


def main() -> None:
    module = AnsibleModule(argument_spec=_jobs.OPTIONS, supports_check_mode=True)
    state = _jobs.inspect(module)
    if state["complete"] or module.check_mode:
        module.exit_json(changed=not state["complete"], state=state)
    needed = int(state["missing_bytes"] * (1 + MARGIN))
    if state["free_bytes"] < needed:
        module.fail_json(
            msg=f"{state['destination']} needs {needed / GIB:.2f} GiB more and its filesystem has {state['free_bytes'] / GIB:.2f} GiB free"
            f" -> free {(needed - state['free_bytes']) / GIB:.2f} GiB, or set fleet_model_root to a larger disk",
            state=state,
        )
    failure = _jobs.run(module)
    if failure:
        module.fail_json(
            msg=failure.reason
            or f"{module.params['unit']} failed -> journalctl -u {module.params['unit']} has all of it",
            journal=failure.journal,
            state=state,
        )
    module.exit_json(changed=True, state=state)


if __name__ == "__main__":
    main()
