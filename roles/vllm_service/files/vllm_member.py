#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run vLLM as one host of a replica that spans several: it starts when all hosts have met, and ends on all when it ends on one.

    vllm_member.py REPLICA COMMAND...

Run by systemd as the service (ExecStart). REPLICA says who belongs to the replica; COMMAND is vLLM, the same on every host. The first host waits at an address
of its own, the others come to it, and each keeps its connection for as long as it runs: a host that is lost, or a vLLM that has ended, is a connection that
is closed. vLLM itself need not notice: with the CPU build, an idle first host whose peer's processes were killed had noticed nothing after 46 s, and its
/health still answered 200. What ends here is started again by systemd and waits for the others, so that a replica comes back by itself however long a host
takes to boot; the unit bounds each wait.

A stop of one is a stop of all: the others tell the first, which lets requests in flight finish before any of them goes.

The first host has the API, and is proved and watched for all. The others have its state `ready`, the file in the runtime directory of the unit, as it has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import typing as t
from pathlib import Path

from vllm_warm_up import publish

POLL_SECONDS = 1
REPORT_SECONDS = 30
GREETING_SECONDS = 5
#: When the kernel gives up a host that is lost without a word, in seconds: idle, between probes, and how many of them. 25 in all, which was not measured.
KEEPALIVE = (10, 5, 3)


class Stopped(Exception):  # noqa: N818 (no error: systemd has asked for it)
    """A stop was asked for before vLLM was started."""


@dataclasses.dataclass
class Link:
    """The connection to another host of the replica, and what of its latest line has come so far."""

    host: str
    socket: socket.socket
    received: bytes = b""

    def tell(self, **word: t.Any) -> None:
        """Say something; who does not hear it any more is noticed when listening."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(word).encode() + b"\n")

    def hear(self, seconds: float) -> list[dict[str, t.Any]] | None:
        """What the other has said within that time; None where the connection is closed."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return []
        try:
            data = self.socket.recv(4096)
        except OSError:
            return None
        if not data or len(self.received) > 65536:
            return None
        *lines, self.received = (self.received + data).split(b"\n")
        try:
            words = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return words if all(isinstance(word, dict) for word in words) else None


class Member:
    """This host in its replica."""

    def __init__(self, replica: dict[str, t.Any]) -> None:
        self.rank: int = replica["rank"]
        self.hosts: list[dict[str, str]] = replica["hosts"]
        self.meeting = (self.hosts[0]["address"], int(replica["port"]))
        self.greeting = {"rank": self.rank, "release": replica["release"], "configuration": replica["configuration"]}
        self.drain_seconds: int = replica["drain_seconds"]
        self.state = Path(os.environ["RUNTIME_DIRECTORY"]) / "ready"
        self.ready: dict[str, t.Any] | None = None
        self.stopping = self.told = self.ended = False
        self.deadline = float("inf")
        self._reported = time.monotonic()

    def stop(self, *_signal: object) -> None:
        self.stopping = True

    def wait(self, what: str) -> None:
        """A moment between two tries; says every now and then what is waited for."""
        if self.stopping:
            raise Stopped
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            print(f"waiting: {what}", flush=True)
        time.sleep(POLL_SECONDS)

    def meet(self) -> list[Link]:
        """The connections to the others, once all are there with the same release and configuration."""
        return self._gather() if self.rank == 0 else [self._join()]

    def _gather(self) -> list[Link]:
        while True:
            try:
                family = socket.AF_INET6 if ":" in self.meeting[0] else socket.AF_INET
                listener = socket.create_server(self.meeting, family=family, backlog=len(self.hosts))
                break
            except OSError as error:
                self.wait(f"cannot listen at {self.meeting[0]}:{self.meeting[1]}: {error}")
        links: dict[int, Link] = {}
        with listener:
            while len(links) < len(self.hosts) - 1:
                if select.select([listener], [], [], 0)[0]:
                    self._admit(listener, links)
                # Who went away again while others are waited for does not count.
                for rank, link in list(links.items()):
                    if link.hear(0) is None:
                        links.pop(rank).socket.close()
                missing = [host["name"] for rank, host in enumerate(self.hosts) if rank and rank not in links]
                if missing:
                    self.wait(f"{', '.join(missing)} has not come yet -> on that host, journalctl --unit 'vllm@*'")
        for link in links.values():
            link.tell(go=True)
        return list(links.values())

    def _admit(self, listener: socket.socket, links: dict[int, Link]) -> None:
        connection, (address, *_rest) = listener.accept()
        link = Link(address, connection)
        said = link.hear(GREETING_SECONDS)
        greeting = said[0] if said else {}
        rank = int(greeting["rank"]) if isinstance(greeting.get("rank"), int) else 0
        expected = 0 < rank < len(self.hosts) and self.hosts[rank]["address"] == address
        if not expected:
            refusal = f"{address} is no host of this replica with rank {rank}"
        elif greeting != self.greeting | {"rank": rank}:
            what = "release" if greeting.get("release") != self.greeting["release"] else "configuration"
            refusal = f"{self.hosts[rank]['name']} has another {what} than {self.hosts[0]['name']}"
        else:
            keep_alive(connection)
            link.host = self.hosts[rank]["name"]
            if rank in links:
                links.pop(rank).socket.close()
            links[rank] = link
            return
        print(f"error: {refusal} -> run the stage again on all hosts of the replica: --tags vllm_service", flush=True)
        link.tell(refused=refusal)
        connection.close()

    def _join(self) -> Link:
        name, own = self.hosts[0]["name"], self.hosts[self.rank]["address"]
        where = f"{name} ({self.meeting[0]}:{self.meeting[1]})"
        while True:
            try:
                connection = socket.create_connection(self.meeting, GREETING_SECONDS, (own, 0))
            except OSError as error:
                self.wait(f"{where} does not answer: {error} -> see that its unit runs and no firewall is between")
                continue
            connection.settimeout(None)
            keep_alive(connection)
            link = Link(name, connection)
            link.tell(**self.greeting)
            while (said := link.hear(POLL_SECONDS)) is not None:
                if any(word.get("go") for word in said):
                    return link
                for word in said:
                    print(f"error: {name} refuses: {word.get('refused')}", flush=True)
                self.wait(f"{name} waits for the other hosts")
            connection.close()
            self.wait(f"{where} has closed the connection")

    def run(self, command: t.Sequence[str], links: t.Sequence[Link]) -> int:
        """Run vLLM until it ends, a stop is asked for, or one of the others is gone; the exit status."""
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        vllm = subprocess.Popen(command, env=environment)
        while vllm.poll() is None:
            if self.stopping and not self.told:
                self._pass_on(vllm, links)
            if time.monotonic() >= self.deadline:
                self._end(vllm)
            if self.rank == 0 and (ready := published(self.state)) != self.ready:
                self.ready = ready
                for link in links:
                    link.tell(ready=ready)
            for link in links:
                said = link.hear(POLL_SECONDS / len(links))
                if said is None and not self.told:
                    print(
                        f"error: {link.host} has left the replica -> its journal says why; this host waits for it",
                        flush=True,
                    )
                    vllm.kill()
                    vllm.wait()
                    return 1
                if said is None and self.rank:
                    self._end(vllm)
                for word in said or []:
                    self._obey(word, vllm, link)
        # A replica that another host has stopped is not done: it waits for that host.
        stopped = self.stopping and vllm.returncode in (0, -signal.SIGTERM)
        return 0 if stopped else vllm.returncode if vllm.returncode > 0 else 1

    def _pass_on(self, vllm: subprocess.Popen[bytes], links: t.Sequence[Link]) -> None:
        """A stop of this host: the first ends by itself, another tells the first and waits until it has gone."""
        self.told = True
        if self.rank == 0:
            self._end(vllm)
        else:
            self.deadline = time.monotonic() + self.drain_seconds
            links[0].tell(leaving=True)

    def _end(self, vllm: subprocess.Popen[bytes]) -> None:
        """Let vLLM finish; told once, since a second time means at once."""
        self.deadline = float("inf")
        if not self.ended:
            self.ended = True
            # Systemd does not know of a stop that another host has asked for: what ends is not ready, and its watchdog does not judge it.
            for name in ("ready", "withdrawn"):
                self.state.with_name(name).unlink(missing_ok=True)
            vllm.terminate()

    def _obey(self, word: dict[str, t.Any], vllm: subprocess.Popen[bytes], link: Link) -> None:
        if "ready" in word:
            self._follow(word["ready"], link)
        if word.get("leaving") and not self.told:
            self.told = True
            print(f"{link.host} stops, and with it the replica: requests in flight finish", flush=True)
            self._end(vllm)

    def _follow(self, ready: dict[str, t.Any] | None, link: Link) -> None:
        """Be ready as the first host is."""
        self.ready = ready
        if ready is None:
            self.state.unlink(missing_ok=True)
            print(f"not ready any more: neither is {link.host}", flush=True)
            return
        publish(self.state, ready)
        print(f"ready: {link.host} is", flush=True)
        notify("READY=1")


def keep_alive(connection: socket.socket) -> None:
    """Notice within seconds that the other host is gone, whether it is told something or not."""
    idle, interval, count = KEEPALIVE
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * (idle + interval * count))


def published(state: Path) -> dict[str, t.Any] | None:
    """What of the state `ready` is true of all hosts; None where it is not there, before the warm-up, from a stop on, or since the watchdog has taken it."""
    try:
        ready = json.loads(state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {name: ready[name] for name in ("since", "release")}


def notify(state: str) -> None:
    """Tell systemd, as sd_notify(3) does."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def main(arguments: list[str]) -> int:
    member = Member(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    signal.signal(signal.SIGTERM, member.stop)
    try:
        links = member.meet()
    except Stopped:
        return 0
    print(
        f"met: {', '.join(host['name'] for host in member.hosts)}; rank {member.rank} of {len(member.hosts)}",
        flush=True,
    )
    return member.run(arguments[1:], links)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
