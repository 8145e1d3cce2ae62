#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clear the way for a start of vLLM, or refuse it: what is in the way is named in the journal, before any GPU is touched.

    vllm_clear.py CONFIG

Run by systemd before the service (ExecStartPre), as root: only root sees which process of another user holds a port or a GPU, and only the driver's own user
may be asked for all. It ends processes of the user `vllm` that no instance owns, and nothing else. Exit code 0 where nothing is in the way; 1 with a line
`error: what -> remedy` for each thing that is.
"""

from __future__ import annotations

import importlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import yaml

if t.TYPE_CHECKING:
    from collections.abc import Iterator

#: As the modules of the collection read nvidia-smi; the role installs it beside this program.
_nvidia_smi = importlib.import_module("gpus._nvidia_smi")

PROC = Path("/proc")
USER = "vllm"
#: Units whose processes are owned: the instances, what watches them, and what measures them.
OWNERS = re.compile(r"(vllm(-watchdog)?@.+|h20-fleet-benchmark)\.service")
#: Where the unit writes.
WRITTEN = ("/var/lib/vllm", "/tmp")  # noqa: S108 (its space is looked at, nothing is written)
#: What a start writes at least: compiled kernels and graphs.
FREE_MIB = 1024
#: Memory that the driver itself holds of an idle GPU, and more.
IDLE_MIB = 2048
#: Seconds after which nvidia-smi counts as hung, as it does where a GPU is broken.
ANSWER_SECONDS = 60
#: Seconds that a killed process may take to be gone, and the driver to give back its memory and to join the fabric after a boot.
SETTLE_SECONDS = 60
POLL_SECONDS = 1


class Process(t.NamedTuple):
    """A process as a person would look for it."""

    pid: int
    user: str
    unit: str
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}, user {self.user}, {self.unit or 'no unit'})"


def process(pid: int) -> Process | None:
    """What runs under an id; None where nothing does."""
    folder = PROC / str(pid)
    try:
        status = (folder / "status").read_text(encoding="utf-8", errors="replace")
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        unit = (folder / "cgroup").read_text(encoding="utf-8").strip().rpartition("/")[2]
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if fields["State"].split()[0] == "Z":  # ended; what it held is given back
        return None
    uid = int(fields["Uid"].split()[1])
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return Process(pid, user, unit, command[:80] or fields["Name"].strip())


def processes() -> Iterator[Process]:
    for folder in PROC.iterdir():
        if folder.name.isdigit() and (found := process(int(folder.name))):
            yield found


def orphans(own: str) -> list[Process]:
    """Processes of the service's user that no instance owns. Before a start the unit itself owns none either."""
    return [
        found
        for found in processes()
        if found.user == USER and (not OWNERS.fullmatch(found.unit) or found.unit == own) and found.pid != os.getpid()
    ]


def sweep(own: str) -> Iterator[str]:
    """End them, and say what does not end."""
    found = orphans(own)
    for orphan in found:
        print(f"ended an orphan: {orphan}", flush=True)
        try:
            os.kill(orphan.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if found:
        left = settled(lambda: [orphan for orphan in found if process(orphan.pid)])
        for orphan in left:
            yield f"an orphan does not end: {orphan} hangs in the driver -> reboot the host"


def settled(look: t.Callable[[], list[t.Any]]) -> list[t.Any]:
    """What ``look`` still finds when it has had its time; [] as soon as it finds nothing."""
    end = time.monotonic() + SETTLE_SECONDS
    while (found := look()) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return found


def port_taken(host: str, port: int) -> Iterator[str]:
    """Who listens where vLLM would."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            yield f"port {port} may not be opened -> give the instance a port from 1024 on"
        except OSError as error:
            holder = listener(port)
            who = f"held by {holder}" if holder else f"not to be had: {error.strerror}"
            yield f"port {port} is {who} -> stop it, or give the instance another port"


def listener(port: int) -> Process | None:
    """The process that listens on a port; None where none is found."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        path = PROC / "net" / table
        for line in path.read_text(encoding="ascii").splitlines()[1:] if path.exists() else []:
            words = line.split()
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{words[9]}]")
    for folder in PROC.iterdir():
        if folder.name.isdigit() and sockets & set(open_files(folder / "fd")):
            return process(int(folder.name))
    return None


def open_files(folder: Path) -> Iterator[str]:
    try:
        for entry in folder.iterdir():
            yield os.readlink(entry)  # noqa: PTH115 (what it points to is no path)
    except OSError:
        return


def full_disks() -> Iterator[str]:
    """Where the unit could not write what a start writes."""
    for folder in WRITTEN:
        free = shutil.disk_usage(folder).free >> 20
        if free < FREE_MIB:
            yield f"{folder} has {free} MiB free, a start needs {FREE_MIB} -> free some: du -xh --max-depth=2 {folder} | sort -h"


def gpus() -> list[dict[str, t.Any]]:
    """What nvidia-smi says of the GPUs that the instance may see; raises ValueError where it does not answer."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    command = ["nvidia-smi", "-q", "-x", *(["-i", chosen] if chosen else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"nvidia-smi did not answer within {ANSWER_SECONDS} s -> look for an Xid in the kernel log; power-cycle the host"
        ) from error
    except (OSError, subprocess.CalledProcessError) as error:
        said = " ".join(str(getattr(error, "stdout", "") or error).split())
        raise ValueError(f"nvidia-smi does not answer: {said} -> run the stage: --tags nvidia_driver") from error
    found: list[dict[str, t.Any]] = _nvidia_smi.parse(done.stdout)["gpus"]
    return found


def broken(found: list[dict[str, t.Any]]) -> Iterator[str]:
    """GPUs that the driver itself wants recovered: no restart mends them, so that none is tried."""
    for gpu in found:
        if gpu["recovery_action"] not in (None, "None"):
            yield (
                f"the driver asks for a recovery of GPU {gpu['address']}: {gpu['recovery_action']} -> "
                f"journalctl --dmesg --grep Xid says why; reset the GPU (nvidia-smi --gpu-reset -i {gpu['address']}) or reboot the host"
            )


def apart(found: list[dict[str, t.Any]], *, joining: bool) -> list[str]:
    """GPUs that are not in the fabric, those that are still joining it or those that have failed: CUDA fails with error 802 on every one of them."""
    return [
        f"the fabric of GPU {gpu['address']} is {gpu['fabric_state']}, {gpu['fabric_status'] or 'no status'} -> "
        "journalctl --unit nvidia-fabricmanager; then run the stage: --tags nvidia_driver"
        for gpu in found
        if gpu["fabric_state"] is not None
        and (gpu["fabric_state"], gpu["fabric_status"]) != ("Completed", "Success")
        and (gpu["fabric_state"] != "Completed") == joining
    ]


def held(found: list[dict[str, t.Any]]) -> Iterator[str]:
    """GPUs that somebody else's process holds. Those of another instance are shared on purpose: the stage has judged its share."""
    for gpu in found:
        for entry in gpu["processes"]:
            holder = process(entry["pid"])
            if not (holder and OWNERS.fullmatch(holder.unit)):
                who = holder or f"{entry['name']} (pid {entry['pid']}, not seen from this host's own processes)"
                yield f"GPU {gpu['address']} is held by {who} -> end it: systemctl stop its unit, or ask its user; then start again"


def leaking(found: list[dict[str, t.Any]]) -> list[str]:
    """GPUs whose memory is held by no process: the driver is still giving it back, or never will."""
    return [
        f"GPU {gpu['address']} holds {gpu['memory_used_mib']} MiB of no process -> "
        f"reset it: nvidia-smi --gpu-reset -i {gpu['address']}, or reboot the host"
        for gpu in found
        if not gpu["processes"] and (gpu["memory_used_mib"] or 0) > IDLE_MIB
    ]


def gpus_in_the_way() -> list[str]:
    """What no waiting mends is told at once."""

    def unsettled() -> list[str]:
        found = gpus()
        return [*apart(found, joining=True), *leaking(found)]

    try:
        found = gpus()
        return [*broken(found), *apart(found, joining=False), *held(found)] or settled(unsettled)
    except ValueError as error:
        return [str(error)]


def main(arguments: list[str]) -> int:
    path = Path(arguments[0])
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    errors = [*sweep(f"vllm@{path.stem}.service")]
    if not config.get("headless"):  # without an API, as all hosts of a replica but the first are
        errors += port_taken(config["host"], config["port"])
    errors += [*full_disks(), *gpus_in_the_way()]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
