# SPDX-License-Identifier: Apache-2.0
"""The wait for a fleet that was started: until systemd has booted each host, its sshd answers, and the services take connections."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from docker.models.containers import Container

from testbed import HEARTBEAT, SetupError, say
from testbed.containers import last_words, output

BOOT_TIMEOUT = 180.0  # seconds
BOOTED = ("running", "degraded")


def wait_for_boot(hosts: Mapping[str, Container], where: Mapping[str, str]) -> None:
    """Wait until systemd has booted each host and its sshd answers; say so, with the failed units where there are any.

    Raises SetupError with the last lines of a host's journal when that takes longer than BOOT_TIMEOUT.
    """
    started = spoken = time.monotonic()
    pending = dict.fromkeys(hosts, "not started")
    while pending:
        for name in list(pending):
            pending[name] = boot_state(hosts[name], where[name])
            if pending[name] in BOOTED:
                report_boot(name, hosts[name], pending.pop(name), time.monotonic() - started)
        now = time.monotonic()
        if pending and now - started > BOOT_TIMEOUT:
            name = next(iter(pending))
            journal = output(hosts[name], "journalctl", "--no-pager", "-n", "15") or last_words(hosts[name])
            raise SetupError(
                f"{name} did not boot in {BOOT_TIMEOUT:.0f} s ({pending[name]}). Look inside: docker exec -it {name} bash. It says:\n{journal}"
            )
        if pending and now - spoken > HEARTBEAT:
            spoken = now
            say(
                "hosts",
                f"{now - started:4.0f} s  "
                + ", ".join(f"{name} {state or 'starting'}" for name, state in pending.items()),
            )
        time.sleep(0.2)


def boot_state(container: Container, address: str) -> str:
    """Return systemd's word for the state of the host, or "waits for sshd" where that alone is missing."""
    state = output(container, "systemctl", "is-system-running")
    return "waits for sshd" if state in BOOTED and not greets(address, 22, b"SSH-") else state


def report_boot(name: str, container: Container, state: str, seconds: float) -> None:
    """Say that `name` has booted, and which units failed."""
    failed = (
        output(container, "systemctl", "list-units", "--failed", "--plain", "--no-legend")
        if state == "degraded"
        else ""
    )
    units = ", ".join(line.split()[0] for line in failed.splitlines())
    say(name, f"{seconds:4.0f} s  booted" + (f", but these units failed: {units}" if units else ""))


def wait_for_service(container: Container, address: str) -> None:
    """Wait until the service takes connections; SetupError with its last words after 20 s."""
    deadline = time.monotonic() + 20
    while not greets(address, 80, b""):
        if time.monotonic() > deadline:
            raise SetupError(f"{container.name} does not answer at {address}:80. It says:\n{last_words(container)}")
        time.sleep(0.1)


def greets(address: str, port: int, greeting: bytes) -> bool:
    """Tell whether something at `address` takes connections to `port` and begins with `greeting` (b"": says nothing by itself)."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(len(greeting)) == greeting if greeting else True
    except OSError:
        return False
