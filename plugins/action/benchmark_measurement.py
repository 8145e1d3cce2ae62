# SPDX-License-Identifier: Apache-2.0
"""Have a replica measured by a unit of its host, and show how far it is."""

from __future__ import annotations

import datetime
import time
import typing as t

import yaml
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.module_utils import _benchmark
from ansible_collections.h20.fleet.plugins.modules import benchmark_measurement
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports

Facts = dict[str, t.Any]


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.benchmark_measurement)."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Facts | None = None) -> Facts:
        result: Facts = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(benchmark_measurement.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        self._vars, self._arguments = task_vars or {}, arguments
        job = arguments["job"]
        if arguments["measured_by"]:
            self._say(f"has no API here: {arguments['measured_by']} measures the replica")
            return result | {"changed": False, "found": {}}
        begun = self._call("benchmark_job", **job)
        if begun.get("failed"):
            return result | self._told(begun)
        if begun["status"] == "due":
            rounds = ", ".join(map(str, job["concurrencies"]))
            self._say(f"would be measured at c={rounds}, each twice, the first time discarded")
            return result | {"changed": False, "found": {}}
        ended = self._watch(begun)
        if ended.get("failed"):
            return result | self._told(ended)
        about = self._about(begun["vllm"])
        if about.get("failed"):
            return result | about
        return result | {"changed": False, "found": about | {"rounds": ended["rounds"], "need": arguments["need"]}}

    def _about(self, vllm: str) -> Facts:
        """What was measured, and on what; behind a URL that is no instance of this host nobody knows the hardware."""
        job = self._arguments["job"]
        served = self._call("replica_info")
        gpu = self._call("gpu_info") if job.get("instance") and not served.get("failed") else {}
        for answer in (served, gpu):
            if answer.get("failed"):
                return self._told(answer)
        answering = gpu["smi"]["gpus"] if gpu.get("smi") else []
        return {
            "schema": _benchmark.SCHEMA,
            "instance": job.get("instance") or job["url"],
            "profile": self._arguments["profile"],
            "model": self._arguments["model"] or served["model"],
            "release": served["release"] if job.get("instance") else "",
            "vllm": vllm,
            "gpu": answering[0]["product"] if answering else "",
            "gpus": len(answering),
            "driver": gpu["smi"]["driver_version"] if answering else "",
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            **{name: job[name] for name in ("url", "input_tokens", "output_tokens", "requests")},
        }

    def _told(self, answer: Facts) -> Facts:
        """A failed answer with the replica that it is about."""
        job = self._arguments["job"]
        told = {name: value for name, value in answer.items() if name not in ("invocation", "exception")}
        return told | {"msg": f"{job.get('instance') or job['url']}: {answer.get('msg', 'the host does not answer')}"}

    def _say(self, line: str) -> None:
        job = self._arguments["job"]
        self._display.display(f"  {self._vars['inventory_hostname']}  {job.get('instance') or job['url']}  {line}")

    def _call(self, name: str, **arguments: t.Any) -> Facts:
        found: Facts = self._execute_module(
            module_name=f"h20.fleet.{name}", module_args=arguments, task_vars=self._vars
        )
        return found

    def _watch(self, found: Facts) -> Facts:
        """Show what the unit says, until it has ended; a failed result where the host stays away for too long."""
        answered = time.monotonic()
        shown = 0
        while True:
            for line in found.get("said", [])[shown:]:
                self._say(line)
                shown += 1
            if found.get("failed") or found["status"] == "ended":
                return found
            time.sleep(self._arguments["interval"])
            try:
                looked = self._call("benchmark_job", **(self._arguments["job"] | {"step": "look"}))
                trouble = str(looked.get("msg", "")) if looked.get("unreachable") else ""
            except AnsibleConnectionFailure as error:
                looked, trouble = {}, str(error).splitlines()[0]
            if not trouble:
                found, answered = looked, time.monotonic()
            elif time.monotonic() - answered > self._arguments["patience"]:
                return {
                    "failed": True,
                    "msg": f"the host is out of reach ({trouble}); its benchmark goes on without the controller -> run it again, which joins it",
                }
