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

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _jobs


def main() -> None:
    module = AnsibleModule(argument_spec=_jobs.OPTIONS, supports_check_mode=True)
    if module.check_mode and not (Path(module.params["program"]).exists() and Path(module.params["job"]).exists()):
        module.exit_json(changed=True, built=True, wheel=None)
    state = _jobs.inspect(module)
    if state["complete"] or module.check_mode:
        module.exit_json(changed=not state["complete"], built=state["to_build"], wheel=state["wheel"])
    if state["obstacles"]:
        module.fail_json(msg="; ".join(state["obstacles"]))
    unit = module.params["unit"]
    failure = _jobs.run(module)
    if failure:
        module.fail_json(
            msg=f"{unit}: {failure.reason or 'it was killed, of memory where the journal says so'}"
            f" -> journalctl -u {unit} has all of it; the same command builds again",
            journal=failure.journal,
        )
    after = _jobs.inspect(module)
    if not after["complete"]:
        module.fail_json(msg=f"{unit} ended and the wheel is not there -> journalctl -u {unit}")
    module.exit_json(changed=True, built=state["to_build"], wheel=after["wheel"])


if __name__ == "__main__":
    main()
