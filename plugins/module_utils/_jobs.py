# SPDX-License-Identifier: Apache-2.0
"""Long work that a systemd unit does on the host, by a program that also tells how far its job is: `<program> inspect <job>`."""

from __future__ import annotations

import json
import re
import sys
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _programs

JOURNAL_LINES = "40"

#: Options of a module that has such work done.
OPTIONS: dict[str, dict[str, t.Any]] = {
    "program": {"type": "path", "required": True},
    "job": {"type": "path", "required": True},
    "unit": {"type": "str", "required": True},
}


class Failure(t.NamedTuple):
    """Why the unit failed, as its last ``error: `` line says, "" where it had no time to; and the end of its journal."""

    reason: str
    journal: list[str]


def inspect(module: AnsibleModule) -> dict[str, t.Any]:
    """What the program says of the job; the module fails where it cannot say it."""
    job = module.params["job"]
    rc, out, err = module.run_command([sys.executable, module.params["program"], "inspect", job])
    if rc != 0:
        module.fail_json(msg=f"{job}: {(err or out).strip().removeprefix('error: ')}")
    state: dict[str, t.Any] = json.loads(out)
    return state


def run(module: AnsibleModule) -> Failure | None:
    """Start the unit, or join it where it runs already, and wait for its end; None where it ended well."""
    systemctl = module.get_bin_path("systemctl", required=True)
    module.run_command([systemctl, "daemon-reload"], check_rc=True)
    unit = module.params["unit"]
    if module.run_command([systemctl, "start", unit])[0] == 0:
        return None
    return failure(module, unit)


def failure(module: AnsibleModule, unit: str) -> Failure:
    """What the journal says of the last run of a unit; of all its runs where systemd does not know the last any more."""
    systemctl = module.get_bin_path("systemctl", required=True)
    journalctl = module.get_bin_path("journalctl", required=True)
    run_id = module.run_command([systemctl, "show", "--property=InvocationID", "--value", unit])[1].strip()
    which = [f"_SYSTEMD_INVOCATION_ID={run_id}"] if re.fullmatch("[0-9a-f]{32}", run_id) else ["--unit", unit]
    show = [journalctl, "--lines", JOURNAL_LINES, "--output", "cat", "--no-pager", *which]
    journal = module.run_command(show)[1].splitlines()
    reasons = [line.removeprefix("error: ") for line in journal if line.startswith("error: ")]
    return Failure(reasons[-1] if reasons else "", journal)


def replicas() -> list[str]:
    """Units of vLLM that hold the GPUs or are about to."""
    states = "--state=active,activating,reloading,deactivating"
    answer = _programs.run(["systemctl", "list-units", "vllm@*.service", states, "--plain", "--no-legend"])
    return [line.split()[0] for line in answer.out.splitlines() if line.strip()]
