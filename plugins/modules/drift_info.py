#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read of a host what a drift from its release could show in, once."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: drift_info
short_description: Read files, packages, kernels and releases of a host in one round trip
version_added: 1.0.0
description:
  - Reads what no other module of the collection returns, for M(h20.fleet.drift_report) to compare. Contents of files stay on the host, their digests leave it.
  - What is absent is null or empty and never an error.
options:
  files:
    description: Files to take the digest of.
    type: list
    elements: path
    default: []
  packages:
    description: Packages to ask dpkg of.
    type: list
    elements: str
    default: []
  uv:
    description: The uv program; empty asks none.
    type: path
    default: ""
  venv:
    description: Environment whose interpreter's version is read; empty reads none.
    type: path
    default: ""
  root:
    description: Folder of the releases and the links.
    type: path
    default: /opt/vllm
extends_documentation_fragment:
  - h20.fleet.attributes.read_only
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Read a file and a package
  h20.fleet.drift_info:
    files: [/etc/nccl.conf]
    packages: [cuda-nvcc-13-0]
  register: found
"""

RETURN = r"""
files:
  description: Of each file its sha256 and when it was changed (in UTC); null where it is not there.
  returned: always
  type: dict
packages:
  description: Of each package that is there its version, status and whether it is held.
  returned: always
  type: dict
kernels:
  description: Releases of the installed kernels, the newest first.
  returned: always
  type: list
  elements: str
distribution:
  description: Name, version and major version as C(ansible_facts) has them.
  returned: always
  type: dict
releases:
  description: Definition of each complete release by its name.
  returned: always
  type: dict
current:
  description: Name of the release that C(current) names; empty where there is none.
  returned: always
  type: str
uv:
  description: Version of the uv program; empty where it does not answer.
  returned: always
  type: str
python:
  description: Version of the environment's interpreter; empty where there is none.
  returned: always
  type: str
"""

import hashlib
import re
import typing as t
from datetime import datetime, timezone
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.sys_info import get_distribution, get_distribution_version
from ansible_collections.h20.fleet.plugins.module_utils import _dpkg, _programs, _releases


def digest(path: Path) -> dict[str, str] | None:
    """sha256 of a file and when it was changed, in UTC; None where it is no file."""
    try:
        content, changed = path.read_bytes(), path.stat().st_mtime
    except OSError:
        return None
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "changed": datetime.fromtimestamp(changed, timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def packages(names: t.Sequence[str], run: _programs.Runner) -> dict[str, dict[str, t.Any]]:
    """Version, status and hold of each of the packages that is there."""
    if not names:
        return {}
    answer = run([*_dpkg.QUERY, *names], _programs.TIMEOUT)  # ends with 1 where one of them is unknown
    return {
        package.name: {"version": package.version, "status": package.status, "held": package.want == "hold"}
        for package in _dpkg.parse_packages(answer.out)
    }


def kernels(boot: Path) -> list[str]:
    """Releases of the kernel images in a folder, the newest first, numbers compared as numbers."""
    found = [path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*") if not path.is_symlink()]
    return sorted(
        found,
        key=lambda name: [(part.isdigit(), int(part) if part.isdigit() else part) for part in _parts(name)],
        reverse=True,
    )


def _parts(name: str) -> list[str]:
    return re.findall(r"\d+|[a-z]+", name)


def python_version(venv: Path) -> str:
    """What pyvenv.cfg says of the interpreter, "" where there is none."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^version(?:_info)? *= *(\S+)", text, re.MULTILINE)
    return found[1] if found else ""


def distribution() -> dict[str, str]:
    """The distribution under the names of ansible_facts."""
    version = get_distribution_version() or ""
    return {
        "distribution": get_distribution(),
        "distribution_version": version,
        "distribution_major_version": version.split(".")[0],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "path", "default": []},
            "packages": {"type": "list", "elements": "str", "default": []},
            "uv": {"type": "path", "default": ""},
            "venv": {"type": "path", "default": ""},
            "root": {"type": "path", "default": _releases.ROOT},
        },
        supports_check_mode=True,
    )
    params, root = module.params, Path(module.params["root"])
    uv = _programs.run([params["uv"], "--version"]).out.split() if params["uv"] else []
    module.exit_json(
        changed=False,
        files={path: digest(Path(path)) for path in params["files"]},
        packages=packages(params["packages"], _programs.run),
        kernels=kernels(Path("/boot")),
        distribution=distribution(),
        releases={
            name: release.definition for name, release in _releases.read(root).items() if release.definition is not None
        },
        current=_releases.pointed(root, _releases.CURRENT),
        uv=uv[1] if len(uv) > 1 else "",
        python=python_version(Path(params["venv"])) if params["venv"] else "",
    )


if __name__ == "__main__":
    main()
