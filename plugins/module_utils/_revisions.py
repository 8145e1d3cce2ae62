# SPDX-License-Identifier: Apache-2.0
"""One revision of a model on a host, as the modules see it: where its files lie, how far it is, and what its unit says."""

from __future__ import annotations

import dataclasses
import json
import time
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

# All of the package, by way of its entry point, so that Ansible sends it along.
from ansible_collections.h20.fleet.plugins.module_utils._weights import __main__ as program  # noqa: F401
from ansible_collections.h20.fleet.plugins.module_utils._weights import fetch
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job, JobError
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import ManifestError

#: On a host: the package, its unit, what it may know of the site, a manifest and a job a revision, and a folder of its own for each.
PROGRAM = Path("/usr/local/lib/h20-fleet/weights")
UNIT = Path("/etc/systemd/system/model-fetch@.service")
ENVIRONMENT = Path("/etc/h20-fleet/model-fetch.env")
JOBS = Path("/etc/h20-fleet/models")
STATE = Path("/var/lib/model-fetch")
#: Beside the weights, what was proved of them. With a shared filesystem it lies in the host's own state, since nothing is written there.
STAMP = ".h20-fleet-manifest.json"

#: What systemd says of a unit that has work under way.
RUNNING = ("active", "activating", "reloading", "deactivating")
PROPERTIES = ("ActiveState", "ExecMainStartTimestampMonotonic", "NeedDaemonReload")


@dataclasses.dataclass(frozen=True)
class Revision:
    """The files of one revision; `instance` names it, and the instance of its unit."""

    instance: str

    @property
    def unit(self) -> str:
        return f"model-fetch@{self.instance}.service"

    @property
    def manifest(self) -> Path:
        return JOBS / f"{self.instance}.manifest.json"

    @property
    def job(self) -> Path:
        return JOBS / f"{self.instance}.job.json"

    @property
    def state(self) -> Path:
        return STATE / self.instance

    @property
    def wanted(self) -> Path:
        """There while the work is to go on, after a restart of the host as well."""
        return self.state / "wanted"


@dataclasses.dataclass(frozen=True)
class Unit:
    """What systemd says of a unit; `started` in seconds since 1970."""

    active: str
    started: float
    stale: bool

    @property
    def running(self) -> bool:
        return self.active in RUNNING


def unit_of(module: AnsibleModule, revision: Revision) -> Unit:
    """The revision's unit as it is now; one that nobody knows is inactive."""
    systemctl = module.get_bin_path("systemctl", required=True)
    out = module.run_command([systemctl, "show", f"--property={','.join(PROPERTIES)}", revision.unit])[1]
    shown = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    started = time.time() - (time.monotonic() - int(shown.get("ExecMainStartTimestampMonotonic") or 0) / 1e6)
    return Unit(shown.get("ActiveState", "inactive"), started, shown.get("NeedDaemonReload") == "yes")


def look(job: Job) -> dict[str, t.Any]:
    """What fetch.inspect says of the job. Without a manifest nobody can tell, so that nothing is complete."""
    try:
        found: dict[str, t.Any] = fetch.inspect(job)
    except (FileNotFoundError, ManifestError):
        return {
            "complete": False,
            "destination": str(job.destination),
            "missing_bytes": None,
            "free_bytes": None,
            "altered": [str(job.destination)],
        }
    return found | {"altered": [str(job.destination / path) for path in found["altered"]]}


def read_job(revision: Revision) -> Job | None:
    """The job on the disk; None where there is none that this program understands."""
    try:
        return Job.load(revision.job)
    except (OSError, JobError):
        return None


def read_json(path: Path) -> dict[str, t.Any]:
    """A JSON object in a file; empty where it is not there or torn."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def changed(path: Path) -> float:
    """When a file was changed, in seconds since 1970; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0
