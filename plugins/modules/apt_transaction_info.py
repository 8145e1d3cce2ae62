#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""See what apt would have to fetch for a transaction."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apt_transaction_info
short_description: See whether apt could do a transaction with what lies on the host
version_added: 1.0.0
description:
  - Lets C(apt-get) resolve the transaction under other pins than the host's, and reads which packages it would have to fetch. Asks no network.
options:
  command:
    description: Command line of C(apt-get install) with its options and packages; it is run with C(--print-uris), which changes nothing.
    type: list
    elements: str
    required: true
  preferences:
    description: Pins that take the place of those in O(preferences_file).
    type: str
    required: true
  preferences_file:
    description: File of pins that is passed over; all others beside it count.
    type: path
    required: true
extends_documentation_fragment:
  - h20.fleet.attributes.read_only
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See whether the driver could be installed without a network
  h20.fleet.apt_transaction_info:
    command: [apt-get, install, --yes, nvidia-open=580.173.02-1]
    preferences: "{{ lookup('ansible.builtin.template', 'preferences.j2') }}"
    preferences_file: /etc/apt/preferences.d/h20-fleet.pref
"""

RETURN = r"""
missing:
  description: Files of packages that are not on the host.
  returned: always
  type: list
  elements: str
error:
  description: What C(apt-get) says where it cannot resolve the transaction; empty where it can.
  returned: always
  type: str
"""

import re
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

#: As apt-get prints what it would fetch: 'URI' file size hash. What a local source has needs no fetch.
FETCHED = re.compile(r"^'(?!(?:file|copy|cdrom):)[^']+' (\S+) \d+ ", re.MULTILINE)


def missing_files(output: str) -> list[str]:
    """The files that ``apt-get --print-uris`` would have to fetch."""
    return sorted(FETCHED.findall(output))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "list", "elements": "str", "required": True},
            "preferences": {"type": "str", "required": True},
            "preferences_file": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    own = Path(module.params["preferences_file"])
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as name:
        pins = Path(name)
        for path in own.parent.glob("*") if own.parent.is_dir() else ():
            if path != own:
                (pins / path.name).symlink_to(path)
        (pins / own.name).write_text(module.params["preferences"], encoding="utf-8")
        program, *arguments = module.params["command"]
        options = ["--print-uris", f"--option=Dir::Etc::PreferencesParts={pins}"]
        rc, out, err = module.run_command(
            [program, *arguments, *options], environ_update={"LC_ALL": "C", "LANGUAGE": "C"}
        )
    lines = [line for line in (*err.splitlines(), *out.splitlines()) if line.startswith("E: ")]
    module.exit_json(
        changed=False,
        missing=missing_files(out) if rc == 0 else [],
        error="" if rc == 0 else (lines[0].removeprefix("E: ") if lines else err.strip() or out.strip()),
    )


if __name__ == "__main__":
    main()
