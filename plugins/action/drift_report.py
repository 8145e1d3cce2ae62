# SPDX-License-Identifier: Apache-2.0
"""Compare a host with its release: render what its files should hold, read the host once, print the table and write the report."""

from __future__ import annotations

import dataclasses
import hashlib
import typing as t
from pathlib import Path

import yaml
from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader
from ansible_collections.h20.fleet.plugins.module_utils import _drift
from ansible_collections.h20.fleet.plugins.modules import drift_report
from ansible_collections.h20.fleet.plugins.plugin_utils import _reports

#: What gives a file its content.
KINDS = ("template", "source", "content", "absent")


class File(t.NamedTuple):
    """A file that a stage writes, or ``absent``; ``item`` is what the loop of its task has."""

    stage: str
    path: str
    kind: str
    value: t.Any
    item: t.Mapping[str, t.Any]


def expanded(entries: t.Iterable[t.Mapping[str, t.Any]]) -> t.Iterator[File]:
    """One file for each entry, or for each item of its ``each``."""
    for entry in entries:
        [kind] = [kind for kind in KINDS if kind in entry]
        for item in entry.get("each", [{}]):
            value = entry[kind].format(**item) if item and kind in ("template", "source") else entry[kind]
            yield File(entry["stage"], entry["path"].format(**item), kind, value, item)


class ActionModule(ActionBase):  # type: ignore[misc]
    """The action behind M(h20.fleet.drift_report)."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        options = _reports.options(yaml.safe_load(drift_report.DOCUMENTATION)["options"])
        _validation, arguments = self.validate_argument_spec(argument_spec=options)
        files = list(expanded(arguments["files"]))
        found: dict[str, t.Any] = self._execute_module(
            module_name="h20.fleet.drift_info",
            module_args={
                "files": [file.path for file in files],
                "packages": [name for names in arguments["packages"].values() for name in names],
                "uv": arguments["uv"],
                "venv": arguments["venv_path"],
            },
            task_vars=variables,
        )
        if found.get("failed") or found.get("unreachable"):
            return result | found
        facts = {"ansible_facts": {**variables.get("ansible_facts", {}), **found["distribution"]}}
        wanted = {key: arguments[key] for key in ("release", "definition", "packages", "held")} | {
            "files": {file.path: {"stage": file.stage, **self._digest(file, variables, facts)} for file in files}
        }
        read = {key: arguments[key] for key in ("gpu", "driver", "venv", "kernel", "revision", "instances")}
        different = _drift.differences(wanted, found | read)
        name = variables["inventory_hostname"]
        self._display.display(_drift.report(name, arguments["release"], different))
        entries = [dataclasses.asdict(entry) | {"remedy": entry.finding.remedy} for entry in different]
        path = _reports.keep(
            arguments["folder"],
            "drift",
            name,
            {
                "host": name,
                "release": arguments["release"],
                "drift": bool(different),
                "differences": entries,
                "compared": {
                    "files": [file.path for file in files] + list(arguments["revision"]["files"]),
                    "packages": arguments["packages"],
                },
            },
        )
        result.update(
            changed=False,
            differences=[entry.id for entry in different],
            report_path=str(path),
            msg=f"{_drift.summary(different)}; {path}",
        )
        if different:
            result["failed"] = True
        return result

    def _digest(self, file: File, variables: dict[str, t.Any], facts: dict[str, t.Any]) -> dict[str, str | None]:
        """sha256 of what the file should hold, None for none; or the error that stands against telling it."""
        if file.kind == "absent":
            return {"sha256": None}
        try:
            return {"sha256": hashlib.sha256(self._content(file, variables, facts)).hexdigest()}
        except (AnsibleError, OSError) as error:
            return {"sha256": None, "error": str(error).splitlines()[0]}

    def _content(self, file: File, variables: dict[str, t.Any], facts: dict[str, t.Any]) -> bytes:
        if file.kind == "content":
            return str(file.value).encode()
        if file.kind == "source":
            return Path(file.value).read_bytes()
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        [text] = lookup.run([file.value], variables=variables, template_vars={**facts, "item": file.item})
        return str(text).encode()
