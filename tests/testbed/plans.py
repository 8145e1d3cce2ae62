# SPDX-License-Identifier: Apache-2.0
"""What the containers of a fleet are made from: one plan for each host and each service, worked out without the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import STATE, hub
from testbed.fleet import Fleet, Host

SERVICES = STATE / "services"
CACHE = "h20-fleet-uv-cache"  # one volume for all hosts, so that a wheel comes once
NO_NAMES = Path(__file__).with_name(
    "no_names.conf"
)  # in place of what the engine writes to /etc/resolv.conf, at every start


@dataclass(frozen=True)
class Plan:
    """A container to be: `options` are keyword arguments of the engine's create call."""

    name: str
    address: str
    options: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """A hash of all of it: another hash is another container."""
        return hashlib.sha256(
            json.dumps([self.address, self.options, self.aliases], sort_keys=True).encode()
        ).hexdigest()[:12]


def host_plan(fleet: Fleet, host: Host, address: str, reference: str, folders: Sequence[str]) -> Plan:
    """Return the container of `host`: it boots systemd, and sees the PCI devices and kernel modules of its description.

    systemd needs the engine's own cgroup tree, writable; its sandboxing of units needs SYS_ADMIN and no syscall filter. With cgroup v1 as with v2 it manages
    the part below the container's own cgroup. SYS_PTRACE lets root see who holds a port, as it does on a real host. vLLM asks for more shared memory than
    the engine's default. `folders` of this machine appear at their own paths.

    What the fleet's hosts share (say one release's environment, too large for each of many hosts) is a volume.

    An isolated host shares nothing with others or with this machine, has no route out (testbed-hardware.service deletes it, see image.py) and no server of
    names: the engine's own would answer to those of containers.
    """
    parts = fleet.state / "hosts" / host.name
    shared = [
        f"{CACHE}:/var/cache/h20-fleet:rw",
        *(f"{volume}:{folder}:rw" for volume, folder in fleet.volumes.items()),
        *(f"{folder}:{folder}:ro" for folder in folders),
    ]
    options = {
        "image": reference,
        "hostname": host.name,
        "labels": fleet.labels,
        "stop_signal": "SIGRTMIN+3",
        "restart_policy": {"Name": "always"},  # makes `systemctl reboot` a reboot
        "cgroupns": "host",
        "cap_add": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN"],
        "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
        "shm_size": "1g",
        "tmpfs": {"/run": "", "/run/lock": "", "/tmp": "exec", **host.tmpfs},  # noqa: S108 - the mount point inside
        "volumes": [
            "/sys/fs/cgroup:/sys/fs/cgroup:rw",
            f"{parts / 'pci'}:/sys/bus/pci/devices:ro",
            f"{parts / 'module'}:/sys/module:rw",
            f"{parts / 'sys'}:/etc/testbed/sys:ro",
            f"{parts / 'hardware.json'}:/etc/testbed/hardware.json:ro",
            *([f"{NO_NAMES}:/etc/resolv.conf:ro", f"{NO_NAMES}:/etc/testbed/isolated:ro"] if host.isolated else shared),
        ],
    }
    return Plan(host.name, address, options)


def service_plans(fleet: Fleet, where: Mapping[str, str], reference: str) -> list[Plan]:
    """Return the containers of the fleet's hub and mirror. The hub sends large files from another name, as the real ones do."""
    program = Path(hub.__file__).with_name("server")
    served = ["python3", "-m", program.name, "--root", "/srv/root", "--port", "80", "--cdn", "http://cdn.hub.test"]
    mirror = ["python3", "-m", "http.server", "80", "--directory", "/srv/root"]
    return [
        service_plan(fleet, "hub", where, reference, served, program, ("cdn.hub.test",)),
        service_plan(fleet, "mirror", where, reference, mirror),
    ]


def service_plan(
    fleet: Fleet,
    service: str,
    where: Mapping[str, str],
    reference: str,
    command: Sequence[str],
    program: Path | None = None,
    aliases: Sequence[str] = (),
) -> Plan:
    """Return the container that serves the folder `service` at http://<service>.test and under further names.

    `program` is a package that the command can name; when a file of it changes, that makes another container.
    """
    name = f"{fleet.name}-{service}"
    sources = "".join(file.read_text() for file in sorted(program.glob("*.py"))) if program else ""
    options = {
        "image": reference,
        "hostname": name,
        "labels": fleet.labels | {"h20.fleet.program": hashlib.sha256(sources.encode()).hexdigest()[:12]},
        "command": list(command),
        "working_dir": "/srv",
        "environment": {"PYTHONUNBUFFERED": "1"},
        "stop_signal": "SIGINT",  # Python as PID 1 heeds it, unlike SIGTERM
        "restart_policy": {"Name": "always"},
        "volumes": [
            f"{SERVICES / service}:/srv/root:ro",
            *([f"{program}:/srv/{program.name}:ro"] if program else []),
        ],
    }
    return Plan(name, where[name], options, (f"{service}.test", *aliases))
