#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Say how far the fetch of one revision of a model is, on this host and on those that report to it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: model_progress_info
short_description: Say how far the fetch of a revision of a model is
version_added: 1.0.0
description:
  - Reads what the unit C(model-fetch@.service) says of itself, and on the host that keeps the books what all hosts have told it.
  - The program, the job and the manifest are those that M(h20.fleet.model_revision) has written.
options:
  instance:
    description: Name of the revision on the host.
    type: str
    required: true
  wait:
    description: Seconds without progress for which a unit at work is waited for; 0 does not wait.
    type: int
    default: 0
extends_documentation_fragment:
  - h20.fleet.attributes.read_only
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See how far the fetch is
  h20.fleet.model_progress_info:
    instance: deepseek-v3-0324-e9b33add7688
  register: progress
"""

RETURN = r"""
complete:
  description: Whether the revision is there and as it was proved.
  returned: always
  type: bool
missing_bytes:
  description: Bytes that are still to come; null where the host has no job or no manifest of the revision.
  returned: always
  type: int
altered:
  description: Files that are not what was proved, or the revision's folder.
  returned: always
  type: list
  elements: str
running:
  description: Whether the unit is at work.
  returned: always
  type: bool
hosts:
  description: What each host last said of itself (phase, bytes, total, origin, rate, source, error, updated, eta); null for one that has said nothing yet.
  returned: always
  type: dict
error:
  description: Why the revision is not complete, in the words of the unit; empty where it is, or while the unit is at work.
  returned: always
  type: str
journal:
  description: The end of the unit's journal; empty where O(ignore:error) is.
  returned: always
  type: list
  elements: str
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _jobs, _revisions

POLL_SECONDS = 2


def read(module: AnsibleModule, revision: _revisions.Revision) -> dict[str, t.Any]:
    """State of the revision, of the unit and of the hosts, as they are now; what was written before this start says nothing of it."""
    job = _revisions.read_job(revision)
    unit = _revisions.unit_of(module, revision)
    if job is None:
        return {
            "complete": False,
            "missing_bytes": None,
            "altered": [],
            "running": unit.running,
            "hosts": {},
            "own": {},
        }
    begun = max(unit.started, _revisions.changed(revision.wanted))
    own, books = (
        _revisions.read_json(path) if _revisions.changed(path) >= begun else {} for path in (job.progress, job.hosts)
    )
    state = _revisions.look(job)
    return {
        **{key: state[key] for key in ("complete", "missing_bytes", "altered")},
        "running": unit.running,
        "hosts": books.get("hosts") or ({job.host: own} if own else {}),
        "own": own,
    }


def failed(found: dict[str, t.Any]) -> bool:
    """Whether the revision will not come by itself: the work says so (the unit may stay a while to tell others why), or there is no work."""
    return not found["complete"] and (found["own"].get("phase") == "failed" or not found["running"])


def settled(module: AnsibleModule, revision: _revisions.Revision, patience: float) -> dict[str, t.Any]:
    """What is read once the revision is complete, or its unit at rest, or nothing has moved for so many seconds."""
    moved, last = time.monotonic(), None
    while True:
        found = read(module, revision)
        sign = (found["own"].get("bytes"), found["own"].get("phase"))
        if sign != last:
            moved, last = time.monotonic(), sign
        if found["complete"] or failed(found) or time.monotonic() - moved >= patience:
            return found
        time.sleep(POLL_SECONDS)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "str", "required": True},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    revision = _revisions.Revision(module.params["instance"])
    found = settled(module, revision, module.params["wait"])
    own = found.pop("own")
    error, journal = "", []
    if failed(found | {"own": own}):
        failure = _jobs.failure(module, revision.unit)
        said = own.get("error", "") if own.get("phase") == "failed" else ""
        error = said or failure.reason or f"{revision.unit} is not at work and has left no reason"
        journal = failure.journal
    module.exit_json(changed=False, error=error, journal=journal, **found)


if __name__ == "__main__":
    main()
