#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Make the packages of a virtual environment exactly those of a lock file."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: venv_packages
short_description: Make a virtual environment hold exactly the packages of a lock file
version_added: 1.0.0
description:
  - Compares name and version of every installed distribution with the lock, and runs C(uv pip sync) with required hashes where they differ.
  - A host that satisfies the lock is left alone and asks no index.
  - Indexes, proxies and certificate authorities reach uv through the task's environment.
options:
  venv:
    description: Folder of the virtual environment. In check mode it may be absent.
    type: path
    required: true
  lock:
    description: Requirements file on the host in which every package is pinned with C(==) and hashes.
    type: path
    required: true
  record:
    description: File that marks the environment as complete; it is deleted before any package changes, and made by whoever finds it complete.
    type: path
    required: true
  uv:
    description: The uv program.
    type: path
    required: true
attributes:
  check_mode:
    description: Reports which packages would change.
    support: full
  diff_mode:
    description: Shows the pins that differ.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Install exactly the packages of the lock
  h20.fleet.venv_packages:
    venv: /opt/vllm/releases/2026.11
    lock: /opt/vllm/releases/2026.11/requirements.lock
    record: /opt/vllm/releases/2026.11/release.json
    uv: /opt/vllm/tools/uv-0.13.9/bin/uv
"""

RETURN = r"""
recorded:
  description: Whether the record that marks the environment as complete is there.
  returned: always
  type: bool
packages:
  description: Number of packages that the lock names.
  returned: always
  type: int
"""

import re
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it: lower case, runs of ``-_.`` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """Version by normalized name of each pin in a lock file's text."""
    return {normalized(name): version for name, version in PIN.findall(text)}


def installed(venv: Path) -> dict[str, str]:
    """Version by normalized name of each distribution in the environment; {} where there is none."""
    found: dict[str, str] = {}
    for folder in venv.glob("lib/python*/site-packages/*.dist-info"):
        name, _separator, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[normalized(name)] = version
    return found


def as_text(pins: t.Mapping[str, str], names: t.Iterable[str]) -> str:
    """The pins of ``names`` as sorted lines; a name that is not pinned has none."""
    return "".join(f"{name}=={pins[name]}\n" for name in sorted(names) if name in pins)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "venv": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "record": {"type": "path", "required": True},
            "uv": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    venv, lock = Path(module.params["venv"]), Path(module.params["lock"])
    if not lock.exists() and module.check_mode:
        module.exit_json(changed=True, packages=0, recorded=False)
    wanted = locked(lock.read_text(encoding="utf-8"))
    before = installed(venv)
    differing = {name for name in {*wanted, *before} if wanted.get(name) != before.get(name)}
    diff = {
        "before": as_text(before, differing),
        "after": as_text(wanted, differing),
        "before_header": str(venv),
        "after_header": str(lock),
    }
    if differing and not module.check_mode:
        Path(module.params["record"]).unlink(missing_ok=True)
        python = venv / "bin/python"
        rc, out, err = module.run_command(
            [
                module.params["uv"],
                "pip",
                "sync",
                "--no-progress",
                "--require-hashes",
                "--compile-bytecode",  # the service may not write into the environment, so it would compile at every start
                "--python",
                str(python),
                str(lock),
            ]
        )
        if rc != 0:
            module.fail_json(
                msg=f"uv could not install {lock} into {venv} -> {_reason(err)}",
                stdout=out,
                stderr=err,
            )
        left = {name for name, version in wanted.items() if installed(venv).get(name) != version}
        if left:
            module.fail_json(
                msg=f"{venv} still differs from {lock} in: {', '.join(sorted(left))}", stdout=out, stderr=err
            )
    module.exit_json(
        changed=bool(differing),
        packages=len(wanted),
        recorded=Path(module.params["record"]).exists(),
        diff=diff if differing else {},
    )


def _reason(stderr: str) -> str:
    """uv's own explanation on one line: what it prints from the first error on."""
    lines = [line.strip(" ×╰─▶├│") for line in stderr.splitlines() if line.strip()]
    start = next(
        (number for number, line in enumerate(lines) if line.startswith(("error", "Failed", "No solution"))),
        max(0, len(lines) - 3),
    )
    return " ".join(lines[start:])


if __name__ == "__main__":
    main()
