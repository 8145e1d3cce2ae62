# SPDX-License-Identifier: Apache-2.0
"""What files below a root say of a host: PCI devices, InfiniBand ports, kernel, kernel modules, driver libraries.

The root is an argument, so that a captured host is read like a live one. An absent or unreadable file is "" or None and never an error.
"""

from __future__ import annotations

import contextlib
import re
import typing as t
from pathlib import Path

NVIDIA_VENDOR = "0x10de"
#: PCI base class and subclass of what is counted: 3D and VGA controllers are GPUs, a bridge of subclass 80 is an NVSwitch.
GPU_CLASSES = ("0x0302", "0x0300")
NVSWITCH_CLASS = "0x0680"
PCI_DEVICES = "sys/bus/pci/devices"
#: The variable by which the firmware says whether it enforces Secure Boot: four bytes of attributes, then the value.
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
#: Where distributions keep the libraries of the driver; Debian has those of NVIDIA in a folder of their own.
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/nvidia", "usr/lib64", "usr/lib")


def read_text(path: Path) -> str:
    """The stripped text of a small file, "" where it is absent or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def pci_devices(root: Path) -> tuple[list[dict[str, t.Any]], list[dict[str, t.Any]]]:
    """NVIDIA GPUs and NVSwitches on the PCI bus, ordered by address; an absent attribute is None.

    Each is ``{address, device, numa_node, link_width, link_width_max, driver}``.
    """
    gpus: list[dict[str, t.Any]] = []
    nvswitches: list[dict[str, t.Any]] = []
    for device in sorted((root / PCI_DEVICES).glob("*")):
        if read_text(device / "vendor") != NVIDIA_VENDOR:
            continue
        entry = {
            "address": device.name,
            "device": read_text(device / "device").removeprefix("0x"),
            "numa_node": _integer(read_text(device / "numa_node")),
            "link_width": _integer(read_text(device / "current_link_width")),
            "link_width_max": _integer(read_text(device / "max_link_width")),
            "driver": _link_name(device / "driver"),
        }
        pci_class = read_text(device / "class")[:6]
        if pci_class in GPU_CLASSES:
            gpus.append(entry)
        elif pci_class == NVSWITCH_CLASS:
            nvswitches.append(entry)
    return gpus, nvswitches


def infiniband(root: Path) -> list[dict[str, t.Any]]:
    """The ports of all InfiniBand and RoCE adapters, ordered by device and port."""
    ports: list[dict[str, t.Any]] = []
    for port in sorted(
        (root / "sys/class/infiniband").glob("*/ports/*"), key=lambda path: (path.parts[-3], path.name.zfill(3))
    ):
        adapter = port.parent.parent
        address = _link_name(adapter / "device")
        pci = root / PCI_DEVICES / (address or "unknown")
        number = _integer(port.name)
        netdev = _netdev(pci, number)
        ports.append(
            {
                "device": adapter.name,
                "port": number,
                "link_layer": read_text(port / "link_layer") or None,
                "state": _word(port / "state"),
                "physical_state": _word(port / "phys_state"),
                "rate_gbps": _number(read_text(port / "rate")),
                "numa_node": _integer(read_text(pci / "numa_node")),
                "netdev": netdev,
                "address": address,
                "firmware": read_text(adapter / "fw_ver") or None,
                "mtu": _integer(read_text(root / "sys/class/net" / netdev / "mtu")) if netdev else None,
                "traffic_class": _traffic_class(root, adapter, port.name),
            }
        )
    return ports


def _traffic_class(root: Path, adapter: Path, port: str) -> int | None:
    """What the port sends with: set for all of it (NVIDIA's own driver), or for connections of the kernel's RDMA manager; None where neither is set."""
    told = re.search(r"tclass=(\d+)", read_text(adapter / "tc" / port / "traffic_class"))
    return _integer(
        told[1]
        if told
        else read_text(root / "sys/kernel/config/rdma_cm" / adapter.name / "ports" / port / "default_roce_tos")
    )


def kernel(root: Path) -> dict[str, t.Any]:
    """``{release, headers, secure_boot}``: "" where the release is not known."""
    release = read_text(root / "proc/sys/kernel/osrelease")
    return {
        "release": release,
        "headers": bool(release) and _leads_somewhere(root, root / "lib/modules" / release / "build"),
        "secure_boot": secure_boot(root),
    }


def secure_boot(root: Path) -> bool | None:
    """Whether the firmware enforces Secure Boot; False where the host was not started by UEFI, None where it cannot be read."""
    try:
        value = (root / SECURE_BOOT).read_bytes()
    except FileNotFoundError:
        # A host that was started by a BIOS has a sysfs, but no variables. Without a sysfs nothing is known.
        return False if (root / "sys").is_dir() else None
    except OSError:
        return None
    return value[4] == 1 if len(value) == 5 else None


def loaded_module(root: Path) -> dict[str, t.Any]:
    """``{loaded_version, open, nouveau}``: the loaded nvidia module ("" none) and whether it is the open one (None: none is loaded)."""
    folder = root / "sys/module/nvidia"
    return {
        "loaded_version": read_text(folder / "version"),
        # The kernel notes a proprietary licence as the taint "P"; the open module has only "O", out of the tree.
        "open": "P" not in read_text(folder / "taint") if folder.is_dir() else None,
        "nouveau": (root / "sys/module/nouveau").is_dir(),
    }


def userspace_version(root: Path) -> str:
    """The version of the driver's libraries by the file that libnvidia-ml.so.1 leads to; "" where there is none."""
    for folder in LIBRARY_FOLDERS:
        target = _link_name(root / folder / "libnvidia-ml.so.1") or ""
        if found := re.fullmatch(r"libnvidia-ml\.so\.(\d+(?:\.\d+)+)", target):
            return found[1]
    return ""


def program(root: Path, *names: str) -> Path | None:
    """The first of these programs in the usual folders below the root."""
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
    return next((path for name in names for folder in folders if (path := root / folder / name).is_file()), None)


def _netdev(pci: Path, port: int | None) -> str | None:
    """The network interface of an adapter's port; where an adapter has several, dev_port counts them from 0."""
    interfaces = sorted((pci / "net").glob("*"))
    of_port = [path for path in interfaces if port is not None and read_text(path / "dev_port") == str(port - 1)]
    return next((path.name for path in (of_port or interfaces)), None)


def _word(path: Path) -> str | None:
    """The word of a numbered state such as "4: ACTIVE"."""
    return read_text(path).rpartition(":")[2].strip() or None


def _link_name(path: Path) -> str | None:
    """The last part of where a symbolic link leads; None where it is none."""
    with contextlib.suppress(OSError):
        return path.readlink().name
    return None


def _leads_somewhere(root: Path, path: Path) -> bool:
    """Whether the path exists; where it is a link to an absolute path, below the root."""
    try:
        target = path.readlink()
    except OSError:
        return path.exists()
    return (root / str(target).lstrip("/")).exists() if target.is_absolute() else path.exists()


def _integer(text: str) -> int | None:
    found = re.match(r"-?\d+", text)
    return int(found.group()) if found else None


def _number(text: str) -> float | None:
    found = re.match(r"\d+(\.\d+)?", text)
    return float(found.group()) if found else None
