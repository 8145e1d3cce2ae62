#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keep the interrupts of the adapters that NCCL uses on the CPUs of their own NUMA node.

    nic_interrupts.py apply|check|restore [DEVICE...]

DEVICE is an adapter (mlx5_0, or mlx5_0:1 for its port) or a network interface; without any, all InfiniBand and RoCE adapters count, and where there is
none the interface of the default route. `apply` leaves an interface no more combined queues than its node has CPUs, and gives each interrupt of the device
one CPU of the node, in turn. `check` changes nothing, prints what differs and ends with 1 where something does. `restore` puts back what was there before
the first `apply`.

Run at boot as well, since a kernel forgets it. What was there before is kept: queues for good, CPUs of interrupts for as long as the kernel runs.
/run/h20-fleet/interrupts lists those that were placed, for irqbalance to leave them alone. An interrupt that the kernel manages cannot be moved, and need
not be.
"""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
import typing as t
from pathlib import Path


class Host:
    """The adapters of a host below a root; ethtool is a function, so that a host can be made up."""

    def __init__(self, root: Path, ethtool: t.Callable[..., str]) -> None:
        self.root = root
        self.ethtool = ethtool
        self.state = root / "var/lib/h20-fleet/nic_interrupts.json"
        self.before = root / "run/h20-fleet/interrupts.json"
        self.moved = root / "run/h20-fleet/interrupts"

    def devices(self, names: t.Sequence[str]) -> list[Path]:
        """The PCI devices of these adapters and interfaces; without names, those that NCCL would take."""
        adapters = sorted((self.root / "sys/class/infiniband").glob("*"))
        chosen = (
            [self.place(name) for name in names] or adapters or [self.place(name) for name in self.default_interfaces()]
        )
        # A bond or a bridge has no device, but those below it do.
        places = [lower for place in chosen for lower in (place, *sorted(place.glob("lower_*")))]
        devices = {(place / "device").resolve() for place in places if (place / "device").exists()}
        return sorted(device for device in devices if (device / "local_cpulist").exists())

    def place(self, name: str) -> Path:
        """The folder of an adapter or an interface."""
        places = (self.root / "sys/class/infiniband" / name.partition(":")[0], self.root / "sys/class/net" / name)
        for place in places:
            if place.exists():
                return place
        raise LookupError(f"{name} is no adapter and no interface of this host")

    def default_interfaces(self) -> list[str]:
        """The interfaces of the default route of IPv4."""
        rows = [line.split() for line in read(self.root / "proc/net/route").splitlines()[1:]]
        return sorted({row[0] for row in rows if len(row) > 7 and row[1] == row[7] == "00000000"})

    def affinity(self, interrupt: int | str) -> Path:
        """The file that says on which CPUs an interrupt may come."""
        return self.root / f"proc/irq/{interrupt}/smp_affinity_list"

    def queues(self, interface: str) -> tuple[int, int] | None:
        """Combined queues of an interface, the most and those now; None where it has none."""
        with contextlib.suppress(subprocess.CalledProcessError):
            words = [line.split() for line in self.ethtool("--show-channels", interface).splitlines()]
            found = [int(row[1]) for row in words if len(row) == 2 and row[0] == "Combined:" and row[1].isdigit()]
            if len(found) == 2 and found[0]:
                return found[0], found[1]
        return None


def cpus(text: str) -> list[int]:
    """The CPUs of a list such as 0-3,8."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _dash, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def plan_queues(host: Host, devices: t.Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Interfaces with more queues than their node has CPUs: how many they have and shall have."""
    found = {}
    for device in devices:
        local = cpus(read(device / "local_cpulist"))
        for interface in sorted(path.name for path in (device / "net").glob("*")):
            queues = host.queues(interface)
            if queues and local and queues[1] > len(local):
                found[interface] = (queues[1], len(local))
    return found


def plan_interrupts(host: Host, devices: t.Iterable[Path]) -> dict[int, tuple[str, str]]:
    """All interrupts of the devices: the CPUs that each has and shall have."""
    found = {}
    for device in devices:
        local = cpus(read(device / "local_cpulist"))
        numbers = sorted(int(path.name) for path in (device / "msi_irqs").glob("*"))
        for position, interrupt in enumerate(numbers if local else ()):
            if host.affinity(interrupt).exists():
                found[interrupt] = (read(host.affinity(interrupt)), str(local[position % len(local)]))
    return found


def apply(host: Host, names: t.Sequence[str]) -> list[str]:
    """Set queues, then interrupts, which the former may have made anew; say what was changed."""
    devices = host.devices(names)
    kept, said = load(host.state), []
    for interface, (now, wanted) in plan_queues(host, devices).items():
        kept.setdefault(interface, now)
        save(host.state, kept)
        host.ethtool("--set-channels", interface, "combined", str(wanted))
        said.append(f"{interface}: {wanted} queues, not {now}")
    before, moved = load(host.before), []
    for interrupt, (place, cpu) in plan_interrupts(host, devices).items():
        if place != cpu:
            try:
                host.affinity(interrupt).write_text(f"{cpu}\n", encoding="ascii")
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                continue  # the kernel manages it
            before.setdefault(str(interrupt), place)
            said.append(f"interrupt {interrupt}: CPU {cpu}, not {place}")
        moved.append(interrupt)
    save(host.before, before)
    host.moved.write_text("".join(f"{interrupt}\n" for interrupt in moved), encoding="ascii")
    return said


def check(host: Host, names: t.Sequence[str]) -> list[str]:
    """What differs from what `apply` has done, or, before its first run, would do."""
    devices = host.devices(names)
    moved = {int(line) for line in read(host.moved).split()}
    applied = host.moved.exists()
    return [f"{name}: {now} queues, not {wanted}" for name, (now, wanted) in plan_queues(host, devices).items()] + [
        f"interrupt {interrupt}: CPU {now}, not {wanted}"
        for interrupt, (now, wanted) in plan_interrupts(host, devices).items()
        if now != wanted and (interrupt in moved or not applied)
    ]


def restore(host: Host, _names: t.Sequence[str]) -> list[str]:
    """Put back what was there before; what is gone by now needs nothing."""
    said = []
    for interface, before in load(host.state).items():
        queues = host.queues(interface)
        if queues and queues[1] != before <= queues[0]:
            host.ethtool("--set-channels", interface, "combined", str(before))
            said.append(f"{interface}: {before} queues, as before")
    for number, place in load(host.before).items():
        path = host.affinity(number)
        if path.exists() and read(path) != place:
            path.write_text(f"{place}\n", encoding="ascii")
            said.append(f"interrupt {number}: CPU {place}, as before")
    for path in (host.state, host.before, host.moved):
        path.unlink(missing_ok=True)
    return said


def read(path: Path) -> str:
    """The text of a small file; "" where it is not there."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def load(path: Path) -> dict[str, t.Any]:
    """What was kept; nothing where it is not there."""
    content: dict[str, t.Any] = json.loads(read(path) or "{}")
    return content


def save(path: Path, content: t.Mapping[str, t.Any]) -> None:
    """Keep it, by one rename."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="ascii")
    new.replace(path)


def ethtool(*arguments: str) -> str:
    """What ethtool prints."""
    return subprocess.run(["ethtool", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def main(arguments: list[str], host: Host) -> int:
    verbs = {"apply": apply, "check": check, "restore": restore}
    if not arguments or arguments[0] not in verbs:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    try:
        said = verbs[arguments[0]](host, arguments[1:])
    except (LookupError, OSError, ValueError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        print(
            f"error: {reason} -> see host_tuning_interrupt_devices, then run the stage again: --tags host_tuning",
            file=sys.stderr,
        )
        return 2
    print("\n".join(said) or "nothing differs", flush=True)
    return 1 if said and arguments[0] == "check" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Host(Path("/"), ethtool)))
