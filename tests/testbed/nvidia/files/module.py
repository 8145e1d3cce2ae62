# SPDX-License-Identifier: Apache-2.0
"""The kernel module: `load` after an installation, `boot` as the kernel does it when it finds the GPUs, `remove` from the disk."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys

from .common import HARDWARE, MODULES, ROOT, answering_gpus, module_version

LOADED = ROOT / "run/testbed/module/nvidia"
BLACKLISTS = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")


def main(version: str) -> int:
    """Run `load`, `boot` or `remove`; a module that is loaded stays, whatever is installed by now."""
    kernel = platform.release()
    place = ROOT / "lib/modules" / kernel / "updates/dkms/nvidia.ko"
    if sys.argv[1:] == ["remove"]:
        place.unlink(missing_ok=True)
        return subprocess.run(["/sbin/depmod", kernel], stderr=subprocess.DEVNULL, check=False).returncode
    if sys.argv[1:] == ["load"] or not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f"usr/src/nvidia-{version}/nvidia.ko", place)
        # It warns that this kernel came without an index of its own modules.
        subprocess.run(["/sbin/depmod", kernel], stderr=subprocess.DEVNULL, check=True)
    if sys.argv[1:] == ["boot"] and _blacklisted("nouveau"):
        shutil.rmtree(MODULES / "nouveau", ignore_errors=True)
    if not HARDWARE.exists() or not answering_gpus():
        print("nvidia: no NVIDIA GPU found.")
    elif (MODULES / "nouveau").exists():
        print("nvidia: the GPUs are in the hands of nouveau; the module waits for a boot without it.")
    elif (loaded := module_version()) is None:
        _load(version)
    elif loaded != version:
        print(f"nvidia: {loaded} stays loaded until the next boot, {version} is installed.")
    return 0


def _load(version: str) -> None:
    # The files lie in /run and are gone with a reboot, like the module itself.
    LOADED.mkdir(parents=True, exist_ok=True)
    for name, text in {"version": version, "initstate": "live", "taint": "O", "refcnt": "0"}.items():
        (LOADED / name).write_text(f"{text}\n", encoding="ascii")
    link = MODULES / "nvidia"
    link.unlink(missing_ok=True)
    link.symlink_to(LOADED)


def _blacklisted(module: str) -> bool:
    pattern = re.compile(rf"^\s*blacklist\s+{module}\s*$", re.MULTILINE)
    files = (path for folder in BLACKLISTS for path in (ROOT / folder).glob("*.conf"))
    return any(pattern.search(path.read_text(encoding="utf-8", errors="replace")) for path in files)
