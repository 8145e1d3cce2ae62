#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Keep one vLLM instance running with the configuration that is on disk."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_instance
short_description: Run a vLLM instance, at boot as well, and restart it when what it was started from has changed
version_added: 1.0.0
description:
  - Compares the time at which the unit was started with the change times of its inputs, so that a run that was cut off between writing
    a file and restarting the service is made good by the next one.
  - Enables the unit, so that it comes up with the host.
  - Returns when the unit is active, which for C(vllm@.service) means that it has answered a completion.
options:
  name:
    description: Name of the instance.
    type: str
    required: true
  inputs:
    description: Files and symbolic links that the instance is started from; one that does not exist is passed over.
    type: list
    elements: path
    default: []
  timeout:
    description: Seconds to wait for the unit to become active.
    type: int
    required: true
attributes:
  check_mode:
    description: Reports whether the instance would be enabled, started or restarted.
    support: full
  diff_mode:
    description: Shows what would be done to the unit, with the reason for a restart.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Run the instance with what is on disk
  h20.fleet.vllm_instance:
    name: deepseek-v3
    inputs: [/etc/vllm/deepseek-v3.yaml, /opt/vllm/current]
    timeout: 3600
"""

RETURN = r"""
reason:
  description: Why the instance was started or restarted; empty where it was left alone.
  returned: always
  type: str
unit:
  description: Name of the unit.
  returned: always
  type: str
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

PROPERTIES = (
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "MainPID",
    "ExecMainStartTimestampMonotonic",
    "NeedDaemonReload",
    "UnitFileState",
)
POLL_SECONDS = 2
JOURNAL_LINES = 40


def show(module: AnsibleModule, systemctl: str, unit: str) -> dict[str, str]:
    """The unit's properties as systemd prints them."""
    out = module.run_command([systemctl, "show", f"--property={','.join(PROPERTIES)}", unit], check_rc=True)[1]
    return dict(line.split("=", 1) for line in out.splitlines())


def newer_inputs(inputs: list[str], started_us: int) -> list[str]:
    """The inputs that were changed after the process was started; a symbolic link counts itself, not what it points to.

    ``started_us`` is in microseconds of the monotonic clock, as systemd gives it.
    """
    started = time.time() - (time.monotonic() - started_us / 1e6)
    links = (Path(path) for path in inputs)
    return [str(path) for path in links if (path.is_symlink() or path.exists()) and path.lstat().st_mtime > started]


def needed_action(state: dict[str, str], unit: str, inputs: list[str]) -> tuple[str, str]:
    """What to tell systemd (start, restart or "" for nothing) and why."""
    if state["ActiveState"] not in ("active", "activating") or state["MainPID"] == "0":
        return "start", f"{unit} is {state['ActiveState']} ({state['SubState']})"
    newer = newer_inputs(inputs, int(state["ExecMainStartTimestampMonotonic"]))
    if state["NeedDaemonReload"] == "yes":
        newer.append(f"the unit file of {unit}")
    return ("restart", f"changed since the start: {', '.join(newer)}") if newer else ("", "")


def is_ready(state: dict[str, str], before: dict[str, str], verb: str) -> bool:
    """Whether the unit is active, by the process that ``verb`` has asked for: right after it, systemd may still show the one before."""
    started = "ExecMainStartTimestampMonotonic"
    return state["ActiveState"] == "active" and not (verb and state[started] == before[started])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "inputs": {"type": "list", "elements": "path", "default": []},
            "timeout": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    unit = f"vllm@{module.params['name']}.service"
    systemctl = module.get_bin_path("systemctl", required=True)
    before = show(module, systemctl, unit)
    verb, reason = needed_action(before, unit, module.params["inputs"])
    disabled = before.get("UnitFileState") != "enabled"
    deeds = ([f"enable {unit}\n"] if disabled else []) + ([f"{verb} {unit}: {reason}\n"] if verb else [])
    result = {
        "changed": bool(deeds),
        "unit": unit,
        "reason": reason,
        "diff": {"before": "", "after": "".join(deeds)} if deeds else {},
    }
    if module.check_mode:
        module.exit_json(**result)
    if deeds:
        module.run_command([systemctl, "daemon-reload"], check_rc=True)
    if disabled:
        module.run_command([systemctl, "enable", unit], check_rc=True)
    if not verb and before["ActiveState"] == "active":
        module.exit_json(**result)
    if verb:
        module.run_command([systemctl, "reset-failed", unit])
        module.run_command([systemctl, "--no-block", verb, unit], check_rc=True)
    begun = time.time()
    restarts = int(show(module, systemctl, unit)["NRestarts"])
    while not is_ready(state := show(module, systemctl, unit), before, verb):
        crashed = state["ActiveState"] == "failed" or int(state["NRestarts"]) > restarts
        waited = time.time() - begun
        if crashed or waited > module.params["timeout"]:
            fail(
                module,
                unit,
                f"failed ({state['Result']})" if crashed else f"is not ready after {waited:.0f} s",
                begun,
                result,
            )
        time.sleep(POLL_SECONDS)
    module.exit_json(**result)


def fail(module: AnsibleModule, unit: str, what: str, since: float, result: dict[str, object]) -> None:
    """End the task with the journal of this start: the cause stands there, not in systemd's verdict."""
    journalctl = module.get_bin_path("journalctl", required=True)
    arguments = [
        "--unit",
        unit,
        "--since",
        f"@{since:.0f}",
        "--lines",
        str(JOURNAL_LINES),
        "--output",
        "cat",
        "--no-pager",
    ]
    journal = module.run_command([journalctl, *arguments])[1].splitlines()
    causes = [line for line in journal if "rror" in line] or journal
    module.fail_json(
        msg=f"{unit} {what}: {causes[-1] if causes else 'its journal is empty'} -> journalctl --unit {unit} has the whole story",
        journal=journal,
        **result,
    )


if __name__ == "__main__":
    main()
