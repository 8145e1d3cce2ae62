#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read-only description of the operating system, memory, disks and ports of a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_info
short_description: Describe the operating system, memory, filesystems and listening ports of a host
version_added: 1.0.0
description:
  - Returns in one round trip what the stages judge a host by, and changes nothing.
options:
  filesystems:
    description: Paths whose filesystem is described; for a path that does not exist yet, that of its nearest parent.
    type: list
    elements: path
    default: []
  trees:
    description: Folders whose files are added up; one that does not exist counts 0 bytes.
    type: list
    elements: path
    default: []
  ports:
    description: TCP ports whose listener is looked for.
    type: list
    elements: int
    default: []
  devices:
    description: Patterns of device files of which is told who has them open.
    type: list
    elements: str
    default: []
extends_documentation_fragment: [h20.fleet.attributes.read_only]
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See who listens on the API port and what is free for the model
  h20.fleet.host_info:
    ports: [8000]
    filesystems: [/data/models]
  register: host
"""

RETURN = r"""
os:
  description: Fields of C(/etc/os-release) that name the distribution.
  returned: always
  type: dict
  sample: {id: ubuntu, version_id: "24.04"}
architecture:
  description: Machine architecture as C(uname -m) prints it.
  returned: always
  type: str
  sample: x86_64
kernel:
  description: Release of the running kernel.
  returned: always
  type: str
memory_bytes:
  description: Physical memory in bytes.
  returned: always
  type: int
filesystems:
  description: Free and total bytes of each path's filesystem, by path, with the parent that was looked at.
  returned: always
  type: dict
  sample: {/data/models: {parent: /data, free_bytes: 1024, total_bytes: 4096}}
trees:
  description: Whether each folder exists and the bytes of the files in it, by path.
  returned: always
  type: dict
  sample: {/data/models/a: {exists: true, bytes: 4096}}
ports:
  description: Listener of each asked port that has one (pid, command and systemd unit), by port.
  returned: always
  type: dict
  sample: {"8000": {pid: 812, command: nginx, unit: nginx.service}}
devices:
  description: Processes that have one of the devices open (pid, command and systemd unit), ordered by pid.
  returned: always
  type: list
  elements: dict
  sample: [{pid: 4711, command: python3, unit: session-1.scope}]
"""

import contextlib
import fnmatch
import os
import platform
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

#: State column of /proc/net/tcp for a listening socket.
LISTEN = "0A"


def os_release(path: Path) -> dict[str, str]:
    """The id and version_id of an os-release file; an absent field is ""."""
    fields = dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {key: fields.get(key.upper(), "").strip("\"'") for key in ("id", "version_id")}


def filesystem(path: Path) -> dict[str, t.Any]:
    """Free and total bytes of the filesystem that holds ``path`` or will hold it."""
    parent = next(candidate for candidate in (path, *path.parents) if candidate.exists())
    status = os.statvfs(parent)
    return {
        "parent": str(parent),
        "free_bytes": status.f_bavail * status.f_frsize,
        "total_bytes": status.f_blocks * status.f_frsize,
    }


def tree(path: Path) -> dict[str, t.Any]:
    """Whether the folder exists, and the bytes of all files in it."""
    return {"exists": path.is_dir(), "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file())}


def listeners(proc: Path, ports: t.Iterable[int]) -> dict[str, dict[str, t.Any]]:
    """Process that listens on each of ``ports``; a port without a listener is absent, a hidden owner has pid None."""
    wanted = set(ports)
    sockets: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for columns in (line.split() for line in lines):
            port = int(columns[1].rpartition(":")[2], 16)
            if columns[3] == LISTEN and port in wanted:
                sockets[f"socket:[{columns[9]}]"] = port
    found: dict[str, dict[str, t.Any]] = {
        str(port): {"pid": None, "command": "", "unit": ""} for port in sockets.values()
    }
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # a process may end at any moment
            for port in {sockets[link] for link in _descriptors(process) if link in sockets}:
                found[str(port)] = _described(process)
    return found


def users(proc: Path, patterns: t.Collection[str]) -> list[dict[str, t.Any]]:
    """Processes that have a file open whose path one of the patterns matches."""
    found = []
    for process in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)) if patterns else ():
        with contextlib.suppress(OSError):  # a process may end at any moment
            if any(fnmatch.fnmatch(link, pattern) for link in _descriptors(process) for pattern in patterns):
                found.append(_described(process))
    return found


def _described(process: Path) -> dict[str, t.Any]:
    return {
        "pid": int(process.name),
        "command": (process / "comm").read_text(encoding="utf-8").strip(),
        "unit": _unit((process / "cgroup").read_text(encoding="utf-8")),
    }


def _descriptors(process: Path) -> set[str]:
    links: set[str] = set()
    with contextlib.suppress(OSError):  # what a process that is not ours has open is not ours to see
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed, which says nothing of the others
                links.add(str(descriptor.readlink()))
    return links


def _unit(cgroup: str) -> str:
    """The innermost systemd unit in the text of a /proc/<pid>/cgroup, "" where there is none."""
    parts = [part for line in cgroup.splitlines() for part in line.rpartition(":")[2].split("/")]
    return next((part for part in reversed(parts) if part.endswith((".service", ".scope"))), "")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "filesystems": {"type": "list", "elements": "path", "default": []},
            "trees": {"type": "list", "elements": "path", "default": []},
            "ports": {"type": "list", "elements": "int", "default": []},
            "devices": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    module.exit_json(
        changed=False,
        os=os_release(Path("/etc/os-release")),
        architecture=platform.machine(),
        kernel=platform.release(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        filesystems={path: filesystem(Path(path)) for path in module.params["filesystems"]},
        trees={path: tree(Path(path)) for path in module.params["trees"]},
        ports=listeners(Path("/proc"), module.params["ports"]),
        devices=users(Path("/proc"), module.params["devices"]),
    )


if __name__ == "__main__":
    main()
