# SPDX-License-Identifier: Apache-2.0
"""Hosts on one machine: network namespaces that hang on one switch, each by a link that is as fast as wanted in both directions. Needs root."""

from __future__ import annotations

import dataclasses
import subprocess
import typing as t

from bench.figures import BenchError

PREFIX = "h20-"
SWITCH = f"{PREFIX}switch"
#: What a link holds back at most before it drops, in seconds of its rate, and the least that its bucket holds: one segment as the kernel hands it over.
QUEUE, BUCKET = 0.1, 64 * 1024


@dataclasses.dataclass(frozen=True)
class Host:
    """A namespace with an address on the switch."""

    name: str
    address: str

    def run(self, *arguments: str) -> list[str]:
        """The command line that runs a program on the host."""
        return ["ip", "netns", "exec", f"{PREFIX}{self.name}", *arguments]

    def shape(self, rate: int) -> None:
        """Let no more than `rate` bytes a second out, and as many in; 0 for no limit."""
        for command in (self.run("tc"), ["ip", "netns", "exec", SWITCH, "tc"]):
            device = "uplink" if command[3] != SWITCH else self.name
            subprocess.run([*command, "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)
            if rate:
                limit, bucket = max(int(rate * QUEUE), 2 * BUCKET), max(rate // 250, BUCKET)
                _do(
                    *command,
                    "qdisc",
                    "add",
                    "dev",
                    device,
                    "root",
                    "tbf",
                    "rate",
                    f"{rate * 8}bit",
                    "burst",
                    str(bucket),
                    "limit",
                    str(limit),
                )

    def sent(self) -> int:
        """Bytes that have left the host, with all headers."""
        counted = subprocess.run(
            self.run("cat", "/sys/class/net/uplink/statistics/tx_bytes"), capture_output=True, text=True, check=True
        )
        return int(counted.stdout)


class Network:
    """The switch and its hosts; all of it is gone when the block ends."""

    def __init__(self, names: t.Sequence[str]) -> None:
        self.hosts = {
            name: Host(name, f"10.77.{number // 250}.{number % 250 + 1}") for number, name in enumerate(names)
        }

    def __enter__(self) -> dict[str, Host]:
        self._remove()
        _do("ip", "netns", "add", SWITCH)
        _do("ip", "-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", SWITCH, "link", "set", "bridge", "up")
        for host in self.hosts.values():
            space = f"{PREFIX}{host.name}"
            _do("ip", "netns", "add", space)
            _do("ip", "-n", space, "link", "set", "lo", "up")
            _do("ip", "-n", space, "link", "add", "uplink", "type", "veth", "peer", "name", host.name, "netns", SWITCH)
            _do("ip", "-n", SWITCH, "link", "set", "dev", host.name, "master", "bridge", "up")
            _do("ip", "-n", space, "addr", "add", f"{host.address}/16", "dev", "uplink")
            _do("ip", "-n", space, "link", "set", "uplink", "up")
        return self.hosts

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for space in (SWITCH, *(f"{PREFIX}{name}" for name in self.hosts)):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _do(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(arguments)}: {done.stderr.strip()}")
