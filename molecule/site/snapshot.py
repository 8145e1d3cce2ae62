# SPDX-License-Identifier: Apache-2.0
"""Everything of a host that a removal has to bring back, as one JSON object: run before the first stage and after the removal, and compared."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

FOLDERS = (
    "/etc",
    "/usr/local",
    "/usr/lib/systemd",
    "/opt",
    "/var/lib",
    "/var/cache",
    "/var/log",
    "/var/spool",
    "/root",
    "/home",
    "/srv",
    "/data",
    "/run/systemd/system",
)
COMMANDS = {
    "packages": ["dpkg-query", "--show", "--showformat=${Package}:${Architecture} ${Version} ${db:Status-Abbrev}\\n"],
    "held": ["apt-mark", "showhold"],
    "manual": ["apt-mark", "showmanual"],
    "users": ["getent", "passwd"],
    "groups": ["getent", "group"],
    "units": ["systemctl", "list-unit-files", "--no-legend", "--no-pager"],
    "failed": ["systemctl", "list-units", "--failed", "--plain", "--no-legend"],
    "alternatives": ["update-alternatives", "--get-selections"],
    "rules": ["nft", "list", "ruleset"],
    "listeners": ["ss", "--listening", "--numeric", "--no-header", "--tcp", "--udp"],
    "diversions": ["dpkg-divert", "--list"],
}


def entry(path: Path) -> str:
    """Kind, mode, owner, and the hash of a file or the target of a link."""
    status = path.lstat()
    kind = stat.filemode(status.st_mode)
    owner = f"{status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{kind} {owner} -> {path.readlink()}"
    if stat.S_ISREG(status.st_mode):
        return f"{kind} {owner} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{kind} {owner}"


def files() -> dict[str, str]:
    """Every path below the folders."""
    found = {}
    for folder in FOLDERS:
        for parent, names, others in os.walk(folder):
            # What is mounted is not the host's.
            names[:] = [name for name in names if not Path(parent, name).is_mount()]
            for name in (*names, *others):
                path = Path(parent, name)
                found[str(path)] = entry(path)
    return found


def lines(command: list[str]) -> dict[str, str]:
    """The lines of a command's answer; none where the host has no such command."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return {}
    return {line.strip(): "" for line in answer.stdout.splitlines()}


json.dump({"files": files()} | {name: lines(command) for name, command in COMMANDS.items()}, sys.stdout)
