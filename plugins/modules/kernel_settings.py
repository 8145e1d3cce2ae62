#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Set kernel parameters of the running kernel where it lets us, and put back what was there before."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_settings
short_description: Set parameters of the running kernel through /proc/sys and /sys, and put them back
version_added: 1.0.0
description:
  - Writes the values that differ. What is absent or read-only, as in a container, is left and returned.
  - Keeps in O(record) what was there before its first change, and puts that back where a parameter is wanted no longer. A value that somebody else has set
    since is theirs and stays.
  - Persists nothing; that is the work of C(sysctl.d) and C(tmpfiles.d).
options:
  settings:
    description: Wanted value by path; a path may be a glob pattern. Empty, all that is in the record is put back.
    type: dict
    required: true
  record:
    description: File on the host that remembers the values before the first change; it goes with the last of them. Without it nothing is put back.
    type: path
attributes:
  check_mode:
    description: Reports what would be written.
    support: full
  diff_mode:
    description: Shows old and new values.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Stop the kernel from moving pages between NUMA nodes
  h20.fleet.kernel_settings:
    settings:
      /proc/sys/kernel/numa_balancing: 0
    record: /var/lib/h20-fleet/host_tuning.json

- name: Put back what was there before
  h20.fleet.kernel_settings:
    settings: {}
    record: /var/lib/h20-fleet/host_tuning.json
"""

RETURN = r"""
unsettable:
  description: Paths that have another value and cannot be written here, and patterns that match nothing.
  returned: always
  type: list
  elements: str
left:
  description: Lines on parameters that were to be put back and have a value that somebody else has set since.
  returned: always
  type: list
  elements: str
"""

import json
import os
import re
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

#: Of a parameter that was changed: what was there before, and what was set.
Record = dict[str, dict[str, str]]


def current_value(path: Path) -> str:
    """The value of a parameter; of a choice that sysfs shows as ``always [madvise] never`` the chosen word."""
    text = path.read_text(encoding="ascii").strip()
    chosen = re.search(r"\[([^\]]+)\]", text)
    return chosen.group(1) if chosen else " ".join(text.split())


def read_record(path: Path | None) -> Record:
    """What was kept; nothing where there is no file yet."""
    if path is None or not path.exists():
        return {}
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def write_record(path: Path, record: Record) -> None:
    """Keep the record, by one rename; an empty one is no file."""
    if not record:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


class Kernel:
    """The parameters of the running kernel, and what becomes of them."""

    def __init__(self, *, check: bool) -> None:
        self.check = check
        self.before = ""
        self.after = ""
        self.unsettable: list[str] = []

    def put(self, path: Path, value: str, wanted: str) -> bool:
        """Write what is wanted in place of the value; whether the kernel takes it."""
        if not os.access(path, os.W_OK):
            self.unsettable.append(str(path))
            return False
        try:
            if not self.check:
                path.write_text(f"{wanted}\n", encoding="ascii")
        except OSError:  # the kernel refuses the value itself
            self.unsettable.append(str(path))
            return False
        self.before += f"{path} = {value}\n"
        self.after += f"{path} = {wanted}\n"
        return True


def apply(kernel: Kernel, settings: t.Mapping[str, t.Any], record: Record, keep: t.Callable[[], None]) -> set[str]:
    """Set what differs, and return all paths that are wanted. What was there is kept before it is overwritten."""
    matched: set[str] = set()
    for pattern, wanted in settings.items():
        paths = sorted(Path("/").glob(pattern.lstrip("/")))
        kernel.unsettable += [] if paths else [pattern]
        for path in paths:
            matched.add(str(path))
            value = current_value(path)
            if value == str(wanted):
                continue
            known = record.get(str(path))
            record[str(path)] = {"before": known["before"] if known else value, "set": str(wanted)}
            keep()
            if not kernel.put(path, value, str(wanted)):
                record.pop(str(path))
                record.update({str(path): known} if known else {})
                keep()
    return matched


def put_back(kernel: Kernel, record: Record, wanted: t.Container[str]) -> list[str]:
    """Put back what is wanted no longer, and name what somebody else has set since."""
    left = []
    for name in [name for name in record if name not in wanted]:
        path, kept = Path(name), record[name]
        value = current_value(path) if path.exists() else kept["before"]
        if value == kept["set"] != kept["before"]:
            if not kernel.put(path, value, kept["before"]):
                continue
        elif value not in (kept["set"], kept["before"]):
            left.append(f"{name} is {value}, neither {kept['set']} as it was set here nor {kept['before']} as before")
        del record[name]
    return left


def main() -> None:
    module = AnsibleModule(
        argument_spec={"settings": {"type": "dict", "required": True}, "record": {"type": "path"}},
        supports_check_mode=True,
    )
    place = Path(module.params["record"]) if module.params["record"] else None
    try:
        kept = read_record(place)
    except ValueError as error:
        module.fail_json(
            msg=f"{place} is torn ({error}), so that nobody knows what was there before -> delete it; the values in force then count as the host's own"
        )
    kernel, record = Kernel(check=module.check_mode), dict(kept)

    def keep() -> None:
        if place is not None and not module.check_mode:
            write_record(place, record)

    wanted = apply(kernel, module.params["settings"], record, keep)
    left = put_back(kernel, record, wanted)
    if record != kept:
        keep()
    for line in left:
        module.warn(f"{line}: it stays")
    module.exit_json(
        changed=bool(kernel.after),
        unsettable=kernel.unsettable,
        left=left,
        diff={"before": kernel.before, "after": kernel.after},
    )


if __name__ == "__main__":
    main()
