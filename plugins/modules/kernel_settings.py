#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Set kernel parameters of the running kernel where it lets us."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_settings
short_description: Set parameters of the running kernel through /proc/sys and /sys
version_added: 1.0.0
description:
  - Writes the values that differ. What is absent or read-only, as in a container, is left and returned.
  - Persists nothing; that is the work of C(sysctl.d) and C(tmpfiles.d).
options:
  settings:
    description: Wanted value by path; a path may be a glob pattern.
    type: dict
    required: true
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
"""

RETURN = r"""
unsettable:
  description: Paths that have another value and cannot be written here, and patterns that match nothing.
  returned: always
  type: list
  elements: str
"""

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def current_value(path: Path) -> str:
    """The value of a parameter; of a choice that sysfs shows as ``always [madvise] never`` the chosen word."""
    text = path.read_text(encoding="ascii").strip()
    chosen = re.search(r"\[([^\]]+)\]", text)
    return chosen.group(1) if chosen else " ".join(text.split())


def main() -> None:
    module = AnsibleModule(argument_spec={"settings": {"type": "dict", "required": True}}, supports_check_mode=True)
    before, after, unsettable = "", "", []
    for pattern, wanted in module.params["settings"].items():
        paths = sorted(Path("/").glob(pattern.lstrip("/")))
        unsettable += [] if paths else [pattern]
        for path in paths:
            value = current_value(path)
            if value == str(wanted):
                continue
            if not os.access(path, os.W_OK):
                unsettable.append(str(path))
                continue
            try:
                if not module.check_mode:
                    path.write_text(f"{wanted}\n", encoding="ascii")
            except OSError:  # the kernel refuses the value itself
                unsettable.append(str(path))
                continue
            before += f"{path} = {value}\n"
            after += f"{path} = {wanted}\n"
    module.exit_json(changed=bool(after), unsettable=unsettable, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
