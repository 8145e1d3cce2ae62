# SPDX-License-Identifier: Apache-2.0
"""Have a host measured by a unit of its own, and show how far it is."""

from __future__ import annotations

import time
import typing as t

import yaml
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.modules import acceptance_measurement
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports

Facts = dict[str, t.Any]


def states(gpu: t.Mapping[str, t.Any]) -> Facts:
    """What may change under load, in the form that the job keeps it."""
    answering = gpu["smi"]["gpus"] if gpu["smi"] else []
    ecc = {
        entry["uuid"]: {
            "address": entry["address"],
            "errors": entry["ecc_uncorrectable"],
            "remap": "Yes" in (entry["row_remap_pending"], entry["row_remap_failure"]),
        }
        for entry in answering
    }
    return {"ecc": ecc, "xids": gpu["xids"]}


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.acceptance_measurement)."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Facts | None = None) -> Facts:
        result: Facts = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(acceptance_measurement.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        self._vars, self._arguments = task_vars or {}, arguments
        gpu = self._call("gpu_info", profiles=arguments["profiles"], topology=True)
        if gpu.get("failed"):
            return result | gpu
        found = self._job(gpu, "begin")
        if found.get("failed"):
            return result | found
        kept = {key: found[key] for key in ("changed", "diff", "reason")}
        if found["status"] in ("running", "ended"):
            if found["status"] == "running" and not (over := self._watch(gpu, found)).get("status"):
                return result | over
            gpu = self._call("gpu_info", profiles=arguments["profiles"], topology=True)
            found = gpu if gpu.get("failed") else self._job(gpu, "collect")
            if found.get("failed"):
                return result | found
            kept["changed"] = True
        if found["status"] == "put_off":
            named = ", ".join(found["replicas"])
            kept["reason"] += f", and {named} uses its GPUs: stop it first"
            result.setdefault("warnings", []).append(
                f"the host is not measured ({found['reason']}), because {named} uses its GPUs -> stop it and run the stage again: --tags acceptance"
            )
        gpu = {name: value for name, value in gpu.items() if name not in ("invocation", "warnings", "deprecations")}
        return result | kept | {"status": found["status"], "gpu": gpu, "found": self._found(gpu, found, kept["reason"])}

    def _found(self, gpu: Facts, found: Facts, reason: str) -> Facts:
        """What the report needs of this host: it takes in those of all hosts."""
        need = self._arguments["need"]
        profile = need["profile"] if need.get("profile", "auto") != "auto" else gpu["profile"]
        return {
            "status": found["status"],
            "reason": reason,
            "record": found["record"],
            "collectives": found["collectives"],
            "need": need,
            "profile": profile or "unknown",
            "hardware": gpu["profiles"].get(profile, {}),
            "topology": gpu["topology"],
            "gpus": len(gpu["smi"]["gpus"]) if gpu["smi"] else 0,
        }

    def _job(self, gpu: Facts, step: str) -> Facts:
        answering = gpu["smi"] or {"driver_version": "", "gpus": []}
        named = {"driver": answering["driver_version"] or "", "gpus": [entry["uuid"] for entry in answering["gpus"]]}
        # What has to be written was written at the first step.
        files: Facts = {} if step == "begin" else {"files": [], "requires": []}
        return self._call(
            "acceptance_job", **(self._arguments["job"] | named | files | {"step": step, "facts": states(gpu)})
        )

    def _call(self, name: str, **arguments: t.Any) -> Facts:
        found: Facts = self._execute_module(
            module_name=f"h20.fleet.{name}", module_args=arguments, task_vars=self._vars
        )
        return found

    def _watch(self, gpu: Facts, found: Facts) -> Facts:
        """Show what the unit says, until it has ended; a failed result where the host stays away for too long."""
        host = self._vars["inventory_hostname"]
        begun = answered = time.monotonic()
        said = ""
        while found["status"] == "running":
            if found["progress"] != said:
                said = found["progress"]
                self._display.display(f"  {host}  {time.monotonic() - begun:4.0f} s  {said}")
            time.sleep(self._arguments["interval"])
            try:
                looked = self._job(gpu, "look")
                trouble = str(looked.get("msg", "")) if looked.get("failed") or looked.get("unreachable") else ""
            except AnsibleConnectionFailure as error:
                looked, trouble = {}, str(error).splitlines()[0]
            if not trouble:
                found, answered = looked, time.monotonic()
            elif time.monotonic() - answered > self._arguments["patience"]:
                return {
                    "failed": True,
                    "msg": f"the host is out of reach ({trouble}); its measurement goes on without the controller -> run the stage again, which joins it",
                }
        return found
