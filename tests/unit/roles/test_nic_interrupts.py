# SPDX-License-Identifier: Apache-2.0
"""nic_interrupts: the adapters that NCCL uses interrupt CPUs of their own node, and a removal puts everything back."""

from __future__ import annotations

import errno
import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
FILES = ROOT / "roles/host_tuning/files"
#: Adapter: NUMA node's CPUs, interface, interrupts.
ADAPTERS = {"mlx5_0": ("0-3", "ens1", range(100, 106)), "mlx5_1": ("8,10-11", "ens2", range(200, 202))}


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nic_interrupts", FILES / "nic_interrupts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = _program()


class Ethtool:
    """What ethtool knows of interfaces: combined queues, the most and now."""

    def __init__(self) -> None:
        self.queues = {"ens1": [63, 63], "ens2": [63, 2]}

    def __call__(self, verb: str, interface: str, *rest: str) -> str:
        if interface not in self.queues:
            raise subprocess.CalledProcessError(1, "ethtool", stderr="netlink error: Operation not supported")
        if verb == "--set-channels":
            self.queues[interface][1] = int(rest[1])
            return ""
        most, now = self.queues[interface]
        return (
            f"Channel parameters for {interface}:\nPre-set maximums:\nRX:\t\tn/a\nCombined:\t{most}\n"
            f"Current hardware settings:\nRX:\t\tn/a\nCombined:\t{now}\n"
        )


@pytest.fixture
def ethtool() -> Ethtool:
    return Ethtool()


@pytest.fixture
def host(tmp_path: Path, ethtool: Ethtool) -> program.Host:  # type: ignore[name-defined]
    """Two adapters on two nodes, and a plain card that has the default route."""
    for number, (adapter, (cpus, interface, interrupts)) in enumerate(ADAPTERS.items()):
        add(tmp_path, f"0000:{number}a:00.0", cpus, interface, interrupts)
        (tmp_path / "sys/class/infiniband" / adapter).mkdir(parents=True)
        (tmp_path / "sys/class/infiniband" / adapter / "device").symlink_to(
            tmp_path / f"sys/devices/0000:{number}a:00.0"
        )
    add(tmp_path, "0000:05:00.0", "0-11", "eno1", range(300, 301))
    (tmp_path / "proc/net").mkdir()
    (tmp_path / "proc/net/route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "eno1\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\nens1\t0000010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
    )
    return program.Host(tmp_path, ethtool)


def add(root: Path, address: str, cpus: str, interface: str, interrupts: range) -> None:
    device = root / "sys/devices" / address
    (device / "net" / interface).mkdir(parents=True)
    (device / "local_cpulist").write_text(f"{cpus}\n")
    (device / "msi_irqs").mkdir()
    (root / "sys/class/net" / interface).mkdir(parents=True)
    (root / "sys/class/net" / interface / "device").symlink_to(device)
    for interrupt in interrupts:
        (device / f"msi_irqs/{interrupt}").write_text("msix\n")
        (root / f"proc/irq/{interrupt}").mkdir(parents=True)
        (root / f"proc/irq/{interrupt}/smp_affinity_list").write_text("0-11\n")


def where(root: Path) -> dict[int, str]:
    return {
        int(path.parent.name): path.read_text().strip() for path in sorted(root.glob("proc/irq/*/smp_affinity_list"))
    }


def test_list_of_cpus() -> None:
    assert program.cpus("0-3,8,10-11") == [0, 1, 2, 3, 8, 10, 11]
    assert program.cpus("") == []


def test_each_interrupt_goes_to_a_cpu_of_its_own_node_in_turn(host: program.Host, ethtool: Ethtool) -> None:  # type: ignore[name-defined]
    assert len(program.check(host, [])) == 1 + 6 + 2
    said = program.apply(host, [])
    assert said[0] == "ens1: 4 queues, not 63"
    assert ethtool.queues == {"ens1": [63, 4], "ens2": [63, 2]}
    placed = {100: "0", 101: "1", 102: "2", 103: "3", 104: "0", 105: "1", 200: "8", 201: "10"}
    assert where(host.root) == placed | {300: "0-11"}
    assert program.check(host, []) == []
    assert program.apply(host, []) == []
    assert host.moved.read_text().split() == [str(interrupt) for interrupt in placed]


def test_what_somebody_has_moved_since_is_seen_and_moved_back(host: program.Host) -> None:  # type: ignore[name-defined]
    program.apply(host, [])
    host.affinity(200).write_text("0\n")
    assert program.check(host, []) == ["interrupt 200: CPU 0, not 8"]
    assert program.apply(host, []) == ["interrupt 200: CPU 8, not 0"]


def test_everything_is_put_back_as_it_was_before_the_first_run(host: program.Host, ethtool: Ethtool) -> None:  # type: ignore[name-defined]
    before = where(host.root)
    program.apply(host, [])
    host.affinity(200).write_text("0\n")
    program.apply(host, [])
    assert len(program.restore(host, [])) == 1 + 6 + 2
    assert where(host.root) == before
    assert ethtool.queues["ens1"] == [63, 63]
    assert not host.state.exists()
    assert not host.moved.exists()
    assert program.restore(host, []) == []


@pytest.mark.parametrize(
    ("names", "interrupts"),
    [
        (["mlx5_1"], {200, 201}),
        (["mlx5_1:1"], {200, 201}),
        (["ens2", "eno1"], {200, 201, 300}),
        (["bond0"], {200, 201}),
        ([], {*range(100, 106), 200, 201}),
    ],
)
def test_devices_by_name_or_those_that_nccl_would_take(
    names: list[str],
    interrupts: set[int],
    host: program.Host,  # type: ignore[name-defined]
) -> None:
    bond = host.root / "sys/class/net/bond0"
    bond.mkdir()
    (bond / "lower_ens2").symlink_to("../ens2")
    assert program.plan_interrupts(host, host.devices(names)).keys() == interrupts


def test_without_adapters_the_default_route_counts(host: program.Host) -> None:  # type: ignore[name-defined]
    (host.root / "sys/class/infiniband").rename(host.root / "sys/class/none")
    assert [device.name for device in host.devices([])] == ["0000:05:00.0"]


def test_interrupt_that_the_kernel_manages_is_left_alone(
    host: program.Host,  # type: ignore[name-defined]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Path.write_text

    def refuse(path: Path, text: str, **options: str) -> int:
        if "proc/irq/200/" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    program.apply(host, ["mlx5_1"])
    assert host.moved.read_text() == "201\n"
    assert program.check(host, ["mlx5_1"]) == []


def test_command_line(host: program.Host, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[name-defined]
    assert program.main(["check"], host) == 1
    assert program.main(["apply"], host) == 0
    assert program.main(["check"], host) == 0
    assert capsys.readouterr().out.endswith("nothing differs\n")
    assert program.main(["apply", "mlx5_9"], host) == 2
    assert (
        "mlx5_9 is no adapter and no interface of this host -> see host_tuning_interrupt_devices"
        in capsys.readouterr().err
    )
    assert program.main([], host) == 2


def test_irqbalance_leaves_alone_what_was_placed(tmp_path: Path) -> None:
    script = (FILES / "irqbalance_policy.sh").read_text()
    (tmp_path / "interrupts").write_text("100\n201\n")
    (tmp_path / "policy.sh").write_text(script.replace("/run/h20-fleet", str(tmp_path)))
    for interrupt, answer in (("100", "ban=true\n"), ("10", ""), ("201", "ban=true\n")):
        command = ["/bin/sh", str(tmp_path / "policy.sh"), "/sys/bus/pci/devices/0000:0a:00.0", interrupt]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == answer
