# SPDX-License-Identifier: Apache-2.0
"""What files below a root say of a host: PCI devices, InfiniBand ports, kernel, modules, libraries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _sysfs
from testbed import hardware
from unit.plugins.support import write_sysfs

RELEASE = "6.8.0-45-generic"


def write(path: Path, text: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", hardware.names())
def test_the_bus_shows_the_described_devices_in_order(name: str, tmp_path: Path) -> None:
    description = hardware.load(name)
    write_sysfs(description, tmp_path)
    gpus, nvswitches = _sysfs.pci_devices(tmp_path)
    assert {gpu["address"]: gpu["numa_node"] for gpu in gpus} == {
        gpu.address: gpu.numa_node for gpu in description.gpus
    }
    assert {switch["address"]: switch["numa_node"] for switch in nvswitches} == description.nvswitches
    assert [gpu["address"] for gpu in gpus] == sorted(gpu["address"] for gpu in gpus)
    assert [f"10de:{gpu['device']}" for gpu in gpus] == [
        gpu.pci_id or description.gpu.pci_id for gpu in sorted(description.gpus, key=lambda gpu: gpu.address)
    ]


def test_a_narrow_link_shows_beside_what_it_could_be(tmp_path: Path) -> None:
    sound = hardware.load("h20_141g")
    write_sysfs(replace(sound, gpus=[replace(sound.gpus[0], pcie_width=4), *sound.gpus[1:]]), tmp_path)
    gpus, _nvswitches = _sysfs.pci_devices(tmp_path)
    assert [(gpu["link_width"], gpu["link_width_max"]) for gpu in gpus] == [(4, 16)] + [(16, 16)] * 7


def test_other_devices_are_not_counted_and_absent_attributes_are_none(tmp_path: Path) -> None:
    bus = tmp_path / "sys/bus/pci/devices"
    devices = {
        "0000:01:00.0": {"vendor": "0x10de", "class": "0x030000", "device": "0x232c"},
        "0000:01:00.1": {"vendor": "0x10de", "class": "0x040300", "device": "0x22ba"},  # the audio function of a GPU
        "0000:02:00.0": {"vendor": "0x1a03", "class": "0x030000", "device": "0x2000"},  # the console of the board
        "0000:03:00.0": {},
    }
    for address, attributes in devices.items():
        (bus / address).mkdir(parents=True)
        for attribute, value in attributes.items():
            (bus / address / attribute).write_text(f"{value}\n")
    absent = {"numa_node": None, "link_width": None, "link_width_max": None, "driver": None}
    assert _sysfs.pci_devices(tmp_path) == ([{"address": "0000:01:00.0", "device": "232c"} | absent], [])
    assert _sysfs.pci_devices(tmp_path / "absent") == ([], [])


@pytest.mark.parametrize("driver", ["nvidia", "nouveau", "vfio-pci"])
def test_the_driver_of_a_device_is_the_one_it_is_bound_to(driver: str, tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:18:00.0"
    for name, text in {"vendor": "0x10de", "class": "0x030200", "device": "0x232c"}.items():
        write(device / name, text)
    link(device / "driver", f"../../../../bus/pci/drivers/{driver}")
    [gpu], _ = _sysfs.pci_devices(tmp_path)
    assert gpu["driver"] == driver


def port(device: str, **fields: Any) -> hardware.Port:
    return hardware.Port(device=device, **fields)


def test_ports_of_adapters_say_where_they_are_and_how_fast(tmp_path: Path) -> None:
    ports = [
        port("mlx5_0", address="0000:1a:00.0", numa_node=1),
        port("mlx5_1", address="0000:1b:00.0", link_layer="Ethernet", netdev="ens1", rate="100 Gb/sec (4X EDR)"),
        port("mlx5_2", address="0000:1c:00.0", state="1: DOWN", phys_state="3: Disabled", rate="10 Gb/sec (4X SDR)"),
    ]
    write_sysfs(replace(hardware.load("h20_141g"), infiniband=ports), tmp_path)
    told = {"firmware": "28.43.2566", "mtu": None, "traffic_class": None}
    up = {"port": 1, "state": "ACTIVE", "physical_state": "LinkUp"} | told
    assert _sysfs.infiniband(tmp_path) == [
        up
        | {"device": "mlx5_0", "link_layer": "InfiniBand", "rate_gbps": 400.0}
        | {"numa_node": 1, "netdev": None, "address": "0000:1a:00.0"},
        up
        | {"device": "mlx5_1", "link_layer": "Ethernet", "rate_gbps": 100.0}
        | {"numa_node": 0, "netdev": "ens1", "address": "0000:1b:00.0"},
        {"device": "mlx5_2", "port": 1, "link_layer": "InfiniBand", "state": "DOWN", "physical_state": "Disabled"}
        | {"rate_gbps": 10.0, "numa_node": 0, "netdev": None, "address": "0000:1c:00.0"}
        | told,
    ]
    assert len(_sysfs.pci_devices(tmp_path)[0]) == 8


@pytest.mark.parametrize(
    ("path", "text", "traffic_class"),
    [
        ("sys/class/infiniband/mlx5_0/tc/1/traffic_class", "Global tclass=106\n", 106),
        ("sys/kernel/config/rdma_cm/mlx5_0/ports/1/default_roce_tos", "160\n", 160),
        ("sys/class/infiniband/mlx5_0/tc/1/traffic_class", "\n", None),
    ],
)
def test_a_port_says_what_it_sends_with(tmp_path: Path, path: str, text: str, traffic_class: int | None) -> None:
    roce = port("mlx5_0", address="0000:1b:00.0", link_layer="Ethernet", netdev="ens1")
    write_sysfs(replace(hardware.load("h20_141g"), infiniband=[roce]), tmp_path)
    write(tmp_path / path, text)
    write(tmp_path / "sys/class/net/ens1/mtu", "9000\n")
    [entry] = _sysfs.infiniband(tmp_path)
    assert (entry["traffic_class"], entry["mtu"]) == (traffic_class, 9000)


def test_the_two_ports_of_one_adapter_have_their_own_interfaces(tmp_path: Path) -> None:
    pci = tmp_path / "sys/bus/pci/devices/0000:1a:00.0"
    for number in (1, 2):
        write(tmp_path / f"sys/class/infiniband/mlx5_0/ports/{number}/rate", "25.5 Gb/sec\n")
        write(pci / f"net/ens{number}/dev_port", f"{number - 1}\n")
    link(tmp_path / "sys/class/infiniband/mlx5_0/device", "../../../0000:1a:00.0")
    ports = _sysfs.infiniband(tmp_path)
    assert [(entry["port"], entry["netdev"], entry["rate_gbps"]) for entry in ports] == [
        (1, "ens1", 25.5),
        (2, "ens2", 25.5),
    ]
    assert {entry["state"] for entry in ports} == {None}


def test_an_adapter_of_which_nothing_is_said_is_listed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sys/class/infiniband/mlx5_0/ports/1").mkdir(parents=True)
    [entry] = _sysfs.infiniband(tmp_path)
    assert {name for name, value in entry.items() if value is not None} == {"device", "port"}


@pytest.mark.parametrize(
    ("value", "enforced"),
    [(b"\6\0\0\0\1", True), (b"\6\0\0\0\0", False), (b"\6\0\0", None), (b"", None), (None, False)],
    ids=["on", "off", "cut off", "empty", "no UEFI"],
)
def test_secure_boot_is_what_the_firmware_says(value: bytes | None, enforced: bool | None, tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    if value is not None:
        write(tmp_path / _sysfs.SECURE_BOOT, value)
    assert _sysfs.secure_boot(tmp_path) is enforced


def test_secure_boot_is_not_known_where_it_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / _sysfs.SECURE_BOOT).mkdir(parents=True)
    assert _sysfs.secure_boot(tmp_path) is None
    assert _sysfs.secure_boot(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("target", "installed", "there"),
    [
        (f"/usr/src/linux-headers-{RELEASE}", True, True),
        (f"/usr/src/linux-headers-{RELEASE}", False, False),
        (f"../../../usr/src/linux-headers-{RELEASE}", True, True),
        (None, True, False),
    ],
    ids=["absolute link", "dangling link", "relative link", "no link"],
)
def test_headers_are_there_where_the_link_leads_somewhere_below_the_root(
    target: str | None,
    installed: bool,
    there: bool,
    tmp_path: Path,
) -> None:
    write(tmp_path / "proc/sys/kernel/osrelease", f"{RELEASE}\n")
    if target:
        link(tmp_path / "lib/modules" / RELEASE / "build", target)
    if installed:
        (tmp_path / "usr/src" / f"linux-headers-{RELEASE}").mkdir(parents=True)
    kernel = _sysfs.kernel(tmp_path)
    assert (kernel["release"], kernel["headers"]) == (RELEASE, there)


def test_without_a_release_there_are_no_headers(tmp_path: Path) -> None:
    (tmp_path / "lib/modules/build").mkdir(parents=True)
    assert _sysfs.kernel(tmp_path) == {"release": "", "headers": False, "secure_boot": None}


@pytest.mark.parametrize(
    ("taint", "is_open"), [("OE\n", True), ("POE\n", False), ("\n", True)], ids=["open", "closed", "untainted"]
)
def test_a_module_is_open_unless_the_kernel_noted_its_licence(taint: str, is_open: bool, tmp_path: Path) -> None:
    write(tmp_path / "sys/module/nvidia/version", "580.173.02\n")
    write(tmp_path / "sys/module/nvidia/taint", taint)
    assert _sysfs.loaded_module(tmp_path) == {"loaded_version": "580.173.02", "open": is_open, "nouveau": False}


def test_without_a_module_nothing_is_said_of_its_licence(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nouveau").mkdir(parents=True)
    assert _sysfs.loaded_module(tmp_path) == {"loaded_version": "", "open": None, "nouveau": True}


@pytest.mark.parametrize("folder", _sysfs.LIBRARY_FOLDERS)
@pytest.mark.parametrize(
    ("target", "version"),
    [("libnvidia-ml.so.580.173.02", "580.173.02"), ("libnvidia-ml.so.595.71", "595.71"), ("libnvidia-ml.so.1.bak", "")],
)
def test_the_library_tells_its_version_by_its_name(folder: str, target: str, version: str, tmp_path: Path) -> None:
    link(tmp_path / folder / "libnvidia-ml.so.1", target)
    assert _sysfs.userspace_version(tmp_path) == version


def test_a_root_with_nothing_below_says_nothing(tmp_path: Path) -> None:
    assert _sysfs.infiniband(tmp_path) == []
    assert _sysfs.userspace_version(tmp_path) == ""
    assert _sysfs.program(tmp_path, "nv-fabricmanager") is None
    assert _sysfs.loaded_module(tmp_path) == {"loaded_version": "", "open": None, "nouveau": False}


def test_the_first_program_that_is_there_is_named(tmp_path: Path) -> None:
    write(tmp_path / "usr/sbin/nvidia-installer")
    assert _sysfs.program(tmp_path, "nvidia-uninstall", "nvidia-installer") == tmp_path / "usr/sbin/nvidia-installer"
