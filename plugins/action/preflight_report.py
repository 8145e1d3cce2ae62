# SPDX-License-Identifier: Apache-2.0
"""Judge a host on the controller: print its table, write its report, and end as the verdict is."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

import yaml
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.module_utils import _preflight
from ansible_collections.h20.fleet.plugins.modules import preflight_report
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports

#: What of a registered result is not of the host: Ansible's own additions, and the profiles that gpu_info compared it with.
NOT_READ = {"ansible_facts", "changed", "deprecations", "failed", "invocation", "profiles", "warnings"}


def said(result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What was read of a host, of a registered result."""
    return {key: value for key, value in result.items() if key not in NOT_READ and not key.startswith("_ansible")}


def summary(verdict: str, found: t.Sequence[_preflight.Finding], path: Path) -> str:
    """One line for whoever sees the result and not the table."""
    if verdict == _preflight.FIT:
        return f"fit; all that was read: {path}"
    if verdict == _preflight.NOT_FIT:
        refusing = ", ".join(dict.fromkeys(entry.id for entry in found if entry.severity == _preflight.REFUSE))
        return f"not fit: {refusing} -> mend what the table says and run preflight again; all that was read: {path}"
    untold = [entry for entry in found if entry.severity == _preflight.UNKNOWN]
    evidence = "; ".join(f"{entry.id}: {entry.evidence}" for entry in untold)
    return f"could not tell whether the host is fit: {evidence} -> {untold[0].remedy}; all that was read: {path}"


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.preflight_report)."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(preflight_report.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        name = arguments["name"] or (task_vars or {})["inventory_hostname"]
        host, gpu, model, need = (arguments[key] for key in ("host", "gpu", "model", "need"))
        found = _preflight.findings(host, gpu, model, need)
        planned = _preflight.plans(gpu, model, need)
        verdict = _preflight.verdict(found)
        self._display.display(_preflight.report(name, host, gpu, found, need, planned))
        known = _preflight.profile_of(gpu, need)
        document = {
            "host": name,
            "verdict": verdict,
            "profile": known[0] if known else None,
            "release": need["release"],
            "findings": [dataclasses.asdict(entry) for entry in found],
            "hardware": said(gpu),
            "system": said(host),
            "plans": planned,
        }
        path = _reports.keep(arguments["folder"], "preflight", name, document)
        result.update(
            changed=False,
            verdict=verdict,
            findings=[entry.id for entry in found],
            report_path=str(path),
            msg=summary(verdict, found, path),
        )
        if verdict == _preflight.NOT_FIT:
            result["failed"] = True
        elif verdict == _preflight.COULD_NOT_TELL:
            # The only way to an exit status of ansible-playbook that is neither success nor failure.
            result["unreachable"] = True
        return result
