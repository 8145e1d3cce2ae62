# SPDX-License-Identifier: Apache-2.0
"""What the reports on the controller share: their options are their documentation, and their files are whole."""

from __future__ import annotations

import json
import os
import tempfile
import typing as t
from datetime import datetime, timezone
from pathlib import Path

from ansible.errors import AnsibleActionFail


def write(path: Path, text: str) -> None:
    """Write a file so that whoever reads it meanwhile has the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)  # no secrets in it, and dashboards read it
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep(folder: str, kind: str, host: str, document: t.Mapping[str, t.Any]) -> Path:
    """Write the report of a host, with the time, to ``<folder>/<kind>/<host>.json``; raises AnsibleActionFail where that cannot be."""
    timed = {**document, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    return keep_text(folder, f"{kind}/{host.replace(os.sep, '_')}.json", json.dumps(timed, indent=2) + "\n")


def keep_text(folder: str, name: str, text: str) -> Path:
    """Write a report below the folder; raises AnsibleActionFail where that cannot be."""
    path = Path(folder).absolute() / name
    try:
        write(path, text)
    except OSError as error:
        raise AnsibleActionFail(
            f"the report {path} cannot be written: {error.strerror} -> set fleet_reports to a folder that can be"
        ) from error
    return path


def options(documented: dict[str, t.Any]) -> dict[str, t.Any]:
    """The documented options as an argument spec, so that the two cannot differ."""
    kept = ("type", "default", "required", "elements")
    spec: dict[str, t.Any] = {}
    for name, option in documented.items():
        spec[name] = {key: option[key] for key in kept if key in option}
        if "suboptions" in option:
            spec[name] |= {"options": options(option["suboptions"]), "apply_defaults": True}
            spec[name].pop("default", None)
    return spec
