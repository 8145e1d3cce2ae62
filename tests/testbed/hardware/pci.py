# SPDX-License-Identifier: Apache-2.0
"""A folder that is good as a bind mount over /sys/bus/pci/devices: the real lspci reads it."""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

CLASS_3D_CONTROLLER = 0x030200
CLASS_BRIDGE = 0x068000
CLASS_INFINIBAND = 0x020700
CLASS_ETHERNET = 0x020000
REVISION = 0xA1
TRANSFER_RATES = {
    1: "2.5 GT/s PCIe",
    2: "5.0 GT/s PCIe",
    3: "8.0 GT/s PCIe",
    4: "16.0 GT/s PCIe",
    5: "32.0 GT/s PCIe",
    6: "64.0 GT/s PCIe",
}
_CAPABILITIES = 0x60
_EXPRESS = 0x10
_RESOURCES = 7


@dataclass(frozen=True)
class Device:
    """A PCI Express endpoint; ``pci_id`` and ``subsystem_id`` are ``vendor:device`` in hex, widths count lanes.

    ``netdev`` is its network interface, ``driver`` the kernel's for it.
    """

    address: str
    pci_id: str
    subsystem_id: str
    device_class: int
    numa_node: int
    cpus: str
    generation: int
    width: int
    current_width: int
    netdev: str = ""
    driver: str = ""


def write_tree(devices: list[Device], directory: Path) -> None:
    """Make the folder show these devices and no others, without replacing the folder itself (it may be mounted)."""
    directory.mkdir(parents=True, exist_ok=True)
    for stale in {path.name for path in directory.iterdir()} - {device.address for device in devices}:
        shutil.rmtree(directory / stale)
    for device in devices:
        folder = directory / device.address
        folder.mkdir(exist_ok=True)
        for name, text in attributes(device).items():
            (folder / name).write_text(f"{text}\n", encoding="ascii")
        (folder / "config").write_bytes(config_space(device))
        shutil.rmtree(folder / "net", ignore_errors=True)
        if device.netdev:
            (folder / "net" / device.netdev).mkdir(parents=True)
        (folder / "driver").unlink(missing_ok=True)
        if device.driver:
            (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{device.driver}")


def attributes(device: Device) -> dict[str, str]:
    """The text files of a device, by name."""
    vendor, model = _ids(device.pci_id)
    subsystem_vendor, subsystem = _ids(device.subsystem_id)
    base, sub, interface = device.device_class >> 16, device.device_class >> 8 & 0xFF, device.device_class & 0xFF
    ids = f"v{vendor:08X}d{model:08X}sv{subsystem_vendor:08X}sd{subsystem:08X}"
    return {
        "vendor": f"{vendor:#06x}",
        "device": f"{model:#06x}",
        "subsystem_vendor": f"{subsystem_vendor:#06x}",
        "subsystem_device": f"{subsystem:#06x}",
        "class": f"{device.device_class:#08x}",
        "revision": f"{REVISION:#04x}",
        "modalias": f"pci:{ids}bc{base:02X}sc{sub:02X}i{interface:02X}",
        "irq": "0",
        "enable": "1",
        "numa_node": str(device.numa_node),
        "local_cpulist": device.cpus,
        "resource": "\n".join(["0x0000000000000000 " * 2 + "0x0000000000000000"] * _RESOURCES),
        "current_link_speed": TRANSFER_RATES[device.generation],
        "max_link_speed": TRANSFER_RATES[device.generation],
        "current_link_width": str(device.current_width),
        "max_link_width": str(device.width),
    }


def config_space(device: Device) -> bytes:
    """The 256 bytes of configuration space: the header and a PCI Express capability with the state of the link."""
    vendor, model = _ids(device.pci_id)
    subsystem_vendor, subsystem = _ids(device.subsystem_id)
    space = bytearray(256)
    memory_and_bus_master, has_capabilities = 0x0006, 0x0010
    struct.pack_into("<HHHH", space, 0x00, vendor, model, memory_and_bus_master, has_capabilities)
    struct.pack_into("<I", space, 0x08, device.device_class << 8 | REVISION)
    struct.pack_into("<HH", space, 0x2C, subsystem_vendor, subsystem)
    space[0x34] = _CAPABILITIES
    endpoint_version_2 = 0x0002
    struct.pack_into("<BBH", space, _CAPABILITIES, _EXPRESS, 0, endpoint_version_2)
    struct.pack_into("<I", space, _CAPABILITIES + 0x0C, device.width << 4 | device.generation)
    struct.pack_into("<H", space, _CAPABILITIES + 0x12, device.current_width << 4 | device.generation)
    struct.pack_into("<I", space, _CAPABILITIES + 0x2C, (1 << device.generation + 1) - 2)
    struct.pack_into("<H", space, _CAPABILITIES + 0x30, device.generation)
    return bytes(space)


def _ids(pair: str) -> tuple[int, int]:
    vendor, device = pair.split(":")
    return int(vendor, 16), int(device, 16)
