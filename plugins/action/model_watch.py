# SPDX-License-Identifier: Apache-2.0
"""Watch how a revision of a model comes to its hosts, from the one that knows of all."""

from __future__ import annotations

import time
import typing as t

import yaml
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.h20.fleet.plugins.modules import model_watch
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports, _transfers

#: Seconds between two looks. What is seen is printed less often, but the end should not be missed for long.
POLL_SECONDS = 3


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.model_watch)."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = _reports.options(yaml.safe_load(model_watch.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        self._display.display(
            f"{arguments['title']}\n  Ctrl-C leaves the transfer running; the same command looks again."
        )
        answered = printed = begun = time.monotonic()
        picture = _transfers.Picture(arguments["hosts"], begun)
        running, over, trouble = True, False, ""
        while running and not over and time.monotonic() - answered < arguments["patience"]:
            time.sleep(POLL_SECONDS)
            found, problem = self._look(arguments["instance"], task_vars or {})
            now = time.monotonic()
            if problem and not trouble:
                self._display.display(
                    f"  the host that is asked does not answer; the transfer goes on without ({problem})"
                )
            trouble = problem
            if problem:
                continue
            answered, running = now, found["running"]
            picture.see(found["hosts"], now)
            over = picture.is_over(now)
            if over or not running or now - printed >= arguments["interval"]:
                printed = now
                self._display.display("\n".join(picture.lines(now)))
        return result | {"changed": False, "over": over, "seconds": round(time.monotonic() - begun)}

    def _look(self, instance: str, task_vars: dict[str, t.Any]) -> tuple[dict[str, t.Any], str]:
        """What the host that knows of all says, or why it cannot be asked just now."""
        try:
            found: dict[str, t.Any] = self._execute_module(
                module_name="h20.fleet.model_progress_info", module_args={"instance": instance}, task_vars=task_vars
            )
        except AnsibleConnectionFailure as error:
            return {}, str(error).splitlines()[0]
        if found.get("failed") or found.get("unreachable"):
            return {}, str(found.get("msg", "it fails")).splitlines()[0]
        return found, ""
