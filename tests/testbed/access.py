# SPDX-License-Identifier: Apache-2.0
"""What ssh and Ansible need to reach a fleet: the key, ssh_config, known_hosts, and environment.json with the limits of a host in it."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docker.models.containers import Container

from testbed import STATE, SetupError
from testbed.containers import output
from testbed.environment import Environment
from testbed.fleet import SERVICE_NAMES, Fleet

KEY = STATE / "ssh" / "id_ed25519"


def ensure_key() -> str:
    """Make sure that the test bed has its ssh key and return the public half."""
    if not KEY.exists():
        if shutil.which("ssh-keygen") is None:
            raise SetupError("ssh-keygen is missing. Type: sudo apt-get install openssh-client")
        KEY.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "h20-fleet-testbed", "-f", str(KEY)], check=True
        )
    return KEY.with_suffix(".pub").read_text()


def authorize(container: Container, public_key: str) -> None:
    """Let the owner of `public_key` log in as ops."""
    if output(container, "cat", "/home/ops/.ssh/authorized_keys") == public_key.strip():
        return
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("authorized_keys")
        entry.size, entry.mode, entry.uid, entry.gid = len(public_key.encode()), 0o600, 1000, 1000
        tar.addfile(entry, io.BytesIO(public_key.encode()))
    container.put_archive("/home/ops/.ssh", archive.getvalue())


def known_hosts(hosts: Mapping[str, Container], where: Mapping[str, str]) -> str:
    """Return the known_hosts file of the fleet, from the keys that lie in the hosts themselves."""
    read = ("sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
    keys = [(name, key.split()[:2]) for name, host in hosts.items() for key in output(host, *read).splitlines()]
    return "".join(f"{name},{where[name]} {' '.join(key)}\n" for name, key in keys)


def ssh_config(fleet: Fleet, where: Mapping[str, str]) -> str:
    """Return the ssh configuration of the fleet, by name and by address. How connections are shared is left to who uses it."""
    aliases = "".join(f"Host {host.name}\n    HostName {where[host.name]}\n\n" for host in fleet.hosts)
    return f"""{aliases}Host {" ".join([*(host.name for host in fleet.hosts), *(where[host.name] for host in fleet.hosts)])}
    User ops
    IdentityFile "{KEY}"
    IdentitiesOnly yes
    UserKnownHostsFile "{fleet.state / "known_hosts"}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


def description(
    fleet: Fleet, settings: Environment, where: Mapping[str, str], fingerprint: str, found: Mapping[str, int | str]
) -> dict[str, Any]:
    """Return environment.json: what an inventory has to know of this fleet and of the machine it runs on."""
    known = settings.as_json()
    if settings.http_proxy or settings.https_proxy:  # what is in the fleet's own network is not behind the proxy
        inside = [
            *filter(None, [settings.no_proxy]),
            *SERVICE_NAMES,
            *(host.name for host in fleet.hosts),
            *where.values(),
        ]
        known["proxy"]["no_proxy"] = ",".join(inside)
    hosts = {host.name: {"address": where[host.name]} for host in fleet.hosts}
    return {
        "fleet": fleet.name,
        **known,
        "nvidia": {"key_fingerprint": fingerprint},
        "limits": dict(found),
        "hosts": hosts,
    }


def limits(container: Container) -> dict[str, int | str]:
    """Return what a unit is granted that asks for infinity: `nofile` in files, `memlock` in bytes, or "infinity".

    systemd starts a unit that asks for more than it may give and grants the highest it may, so only a unit can tell.
    """
    ask = [
        "systemd-run",
        "--quiet",
        "--wait",
        "--collect",
        "--pipe",
        "--property=LimitNOFILE=infinity",
        "--property=LimitMEMLOCK=infinity",
    ]
    granted = output(container, *ask, "cat", "/proc/self/limits")
    return {"nofile": hard_limit(granted, "Max open files"), "memlock": hard_limit(granted, "Max locked memory")}


def hard_limit(table: str, name: str) -> int | str:
    """Return the hard limit called `name` from the text of a /proc/<pid>/limits."""
    match = re.search(rf"^{name}\s+\S+\s+(\S+)", table, re.MULTILINE)
    if match is None:
        raise SetupError(f"A host does not tell its limits ({name}); systemd-run there says: {table or 'nothing'}")
    return "infinity" if match[1] == "unlimited" else int(match[1])


def write(path: Path, text: str) -> None:
    """Write `text` to `path` for this user alone (an index URL may hold a password), unless it says so already."""
    if path.exists() and path.read_text() == text:
        return
    path.touch(mode=0o600)
    path.write_text(text)
