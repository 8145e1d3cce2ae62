# SPDX-License-Identifier: Apache-2.0
"""The container engine: find one that answers, else install and start Docker where that is allowed, and stop again what was started here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
from docker import DockerClient
from docker.errors import DockerException

from testbed import HEARTBEAT, STATE, SetupError, last_lines, run, say

RECORD = (
    STATE / "engine.json"
)  # {"installed": bool, "started": "systemd" | "dockerd" | "", "pid": int}: what clean has to undo
LOG = STATE / "dockerd.log"
SOCKET = Path("/var/run/docker.sock")
START_TIMEOUT = 60.0  # seconds


def connect() -> DockerClient | None:
    """Return a client of the engine that DOCKER_HOST or the default socket names, None where none answers."""
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except DockerException:
        return None
    return client


def ensure() -> DockerClient:
    """Return a client of an engine that answers; install and start one where none does.

    Raises SetupError with what to type where this user may not do that, or with the engine's last words where it does not come up.
    """
    if (client := connect()) is not None:
        return client
    if host := os.environ.get("DOCKER_HOST"):
        raise SetupError(
            f"The container engine at DOCKER_HOST={host} does not answer. Start it, or unset DOCKER_HOST to use the one of this machine."
        )
    if os.geteuid() != 0:
        raise SetupError(advice())
    installed = shutil.which("dockerd") is None
    if installed:
        install("docker.io", "dockerd")
    return connect() or start(installed)


def advice() -> str:
    """Return what a user who is not root has to type to get an engine that answers."""
    if SOCKET.exists() and not os.access(SOCKET, os.R_OK | os.W_OK):
        return 'A container engine runs, but this user may not talk to it. Type: sudo usermod -aG docker "$USER" && newgrp docker'
    start_it = (
        "sudo systemctl start docker" if under_systemd() else "sudo sh -c 'nohup dockerd >/var/log/dockerd.log 2>&1 &'"
    )
    if shutil.which("dockerd"):
        return f"No container engine answers. Type: {start_it}"
    return f'No container engine is installed. Type: sudo apt-get install docker.io && {start_it} && sudo usermod -aG docker "$USER" && newgrp docker'


def install(package: str, program: str) -> None:
    """Install `package` for `program` by apt-get; SetupError where there is no apt-get or no right to use it."""
    if shutil.which("apt-get") is None:
        raise SetupError(
            f"{program} is missing and this machine has no apt-get: install {program} by its own package manager and run this again."
        )
    if os.geteuid() != 0:
        raise SetupError(f"{program} is missing. Type: sudo apt-get install {package}")
    say(package, f"installing it by apt-get, since {program} is missing here (it stays installed)")
    apt_get = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=120"]
    run(package, [*apt_get, "update"], STATE / "log" / "apt-update.log")
    run(
        package,
        [*apt_get, "install", "--yes", "--no-install-recommends", package],
        STATE / "log" / f"apt-{package}.log",
    )


def under_systemd() -> bool:
    """Tell whether systemd is this machine's PID 1."""
    return Path("/run/systemd/system").is_dir()


def start(installed: bool) -> DockerClient:
    """Start Docker, note that for `clean`, and return a client once it answers."""
    STATE.mkdir(exist_ok=True)
    if under_systemd():
        say("engine", "starting it: systemctl start docker")
        run("engine", ["systemctl", "start", "docker"], LOG)
        record(installed, "systemd", 0)
        return wait_for_answer(None)
    say("engine", f"starting dockerd, log in {LOG}")
    with LOG.open("wb") as log:
        daemon = subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    record(installed, "dockerd", daemon.pid)
    return wait_for_answer(daemon)


def wait_for_answer(daemon: subprocess.Popen[bytes] | None) -> DockerClient:
    """Wait until the engine answers; SetupError with its last lines once it has ended or START_TIMEOUT has passed."""
    started = time.monotonic()
    spoken = started
    while time.monotonic() - started < START_TIMEOUT and (daemon is None or daemon.poll() is None):
        if (client := connect()) is not None:
            return client
        if time.monotonic() - spoken > HEARTBEAT:
            spoken = time.monotonic()
            say("engine", f"{spoken - started:4.0f} s  waiting for its answer")
        time.sleep(0.3)
    raise SetupError(
        f"dockerd does not answer. Its last lines (all of them: {LOG}, or journalctl -u docker):\n{last_lines(LOG, 15)}"
    )


def record(installed: bool, started: str, pid: int) -> None:
    """Write down what was done to this machine's engine; an installation noted earlier stays noted."""
    RECORD.write_text(json.dumps({"installed": installed or recorded()["installed"], "started": started, "pid": pid}))


def recorded() -> dict[str, Any]:
    """Return what `record` wrote (its shape is described at RECORD)."""
    known: dict[str, Any] = (
        json.loads(RECORD.read_text()) if RECORD.exists() else {"installed": False, "started": "", "pid": 0}
    )
    return known


def release(client: DockerClient, known: dict[str, Any]) -> None:
    """Stop the engine if `known` (see `recorded`) says that it was started here and nobody else's containers need it."""
    others = [container.name for container in client.containers.list()]
    client.close()
    if known["started"] and others:
        say("engine", f"left running for containers that are not the test bed's: {', '.join(map(str, others))}")
    elif known["started"] == "systemd":
        subprocess.run(["systemctl", "stop", "docker.socket", "docker.service"], check=True)
        say("engine", "stopped")
    elif known["started"] == "dockerd" and is_dockerd(known["pid"]):
        os.kill(known["pid"], signal.SIGTERM)
        await_end(known["pid"])
        say("engine", "stopped")
    if known["installed"]:
        say(
            "engine",
            "the package docker.io stays installed; to remove it: apt-get purge docker.io && apt-get autoremove",
        )


def is_dockerd(pid: int) -> bool:
    """Tell whether process `pid` is a Docker daemon that runs: neither a later process of the same number nor one that ended and waits to be reaped."""
    status = Path(f"/proc/{pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return fields.get("Name") == "dockerd" and not fields["State"].startswith("Z")


def await_end(pid: int) -> None:
    """Wait until the daemon `pid` has ended; SetupError after START_TIMEOUT."""
    deadline = time.monotonic() + START_TIMEOUT
    while is_dockerd(pid):
        if time.monotonic() > deadline:
            raise SetupError(f"dockerd (process {pid}) does not stop. Look at its log and end it: kill {pid}")
        time.sleep(0.2)
