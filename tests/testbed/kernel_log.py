# SPDX-License-Identifier: Apache-2.0
"""The kernel's messages of a host: its journald reads them from a FIFO at /dev/kmsg (see image.py) and keeps them as those of the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from docker.models.containers import Container

from testbed import SetupError, containers

# Runs in the host. journald takes a record a read and drops what is older than the number it expects next. Containers share the boot id of their machine, so
# that messages outlive a reboot; who wants others has to throw the journal away.
PROGRAM = """\
import fcntl, os, struct, subprocess, sys, termios, time

def journal(*options):
    return subprocess.run(["journalctl", "--quiet", *options], capture_output=True, check=True).stdout

if journal("--dmesg", "--boot", "--lines=1"):
    journal("--rotate", "--vacuum-time=1us")
with open("/run/systemd/journal/kernel-seqnum", "rb") as file:
    (number,) = struct.unpack("=Q", file.read(8))
fifo = os.open("/dev/kmsg", os.O_WRONLY | os.O_NONBLOCK)
for line in sys.argv[1:]:
    os.write(fifo, f"4,{number},{time.monotonic_ns() // 1000},-;{line}\\n".encode())
    number += 1
    end = time.monotonic() + 10
    while any(fcntl.ioctl(fifo, termios.FIONREAD, bytes(4))):
        if time.monotonic() > end:
            sys.exit("journald does not read /dev/kmsg")
        time.sleep(0.002)
journal("--sync")
"""


def write(container: Container, lines: Sequence[str]) -> None:
    """Make ``lines`` all that the kernel of the host has said since its boot."""
    said = containers.output(container, "python3", "-c", PROGRAM, *lines)
    if said:
        raise SetupError(f"{container.name} does not take messages of its kernel: {said}")
