# SPDX-License-Identifier: Apache-2.0
"""What the tests of the plugins share: a module run for real, programs to stand in for others, a described host's sysfs."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from testbed import hardware
from testbed.nvidia import package

MODULES = "ansible_collections.h20.fleet.plugins.modules"
DRIVER = "580.173.02"


def run_module(module: str, /, *, check: bool = False, **params: Any) -> dict[str, Any]:
    """Run the module's main() with these parameters, as Ansible does on a host, and return what it answered."""
    private = {"_ansible_check_mode": check, "_ansible_tmpdir": tempfile.gettempdir()}
    answer = io.StringIO()
    with patch_module_args(params | private), contextlib.redirect_stdout(answer), pytest.raises(SystemExit) as end:
        importlib.import_module(f"{MODULES}.{module}").main()
    result: dict[str, Any] = json.loads(answer.getvalue())
    assert bool(end.value.code) is result.get("failed", False)
    return result


def write_program(path: Path, body: str) -> Path:
    """An executable Python program whose ``HERE`` is its folder and ``ARGUMENTS`` its command line, with ``json`` and ``sys`` at hand."""
    header = "import json, pathlib, sys\nHERE, ARGUMENTS = pathlib.Path(__file__).parent, sys.argv[1:]\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IB\n{header}{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def write_sysfs(description: hardware.Description, root: Path) -> Path:
    """The sysfs of a described host below ``root/sys``; no driver is loaded."""
    hardware.write_host(description, root / "etc/testbed")
    sysfs = root / "sys"
    (sysfs / "bus/pci").mkdir(parents=True)
    (sysfs / "bus/pci/devices").symlink_to(root / "etc/testbed/pci")
    (sysfs / "module").symlink_to(root / "etc/testbed/module")
    for folder in ("firmware", "class"):
        (sysfs / folder).symlink_to(root / "etc/testbed/sys" / folder)
    return sysfs


def load_driver(root: Path) -> Path:
    """Load the driver of the host below ``root`` and return its nvidia-smi."""
    (root / "sys/module/nvidia").mkdir()
    (root / "sys/module/nvidia/version").write_text(f"{DRIVER}\n", encoding="ascii")
    body = f"""\
import os
os.environ["TESTBED_ROOT"] = {str(root)!r}
sys.path.insert(0, {str(package.HERE)!r})
from files.smi import main
sys.exit(main({DRIVER!r}))"""
    return write_program(root / "usr/bin/nvidia-smi", body)
