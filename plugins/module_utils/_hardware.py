# SPDX-License-Identifier: Apache-2.0
"""What the collection knows of GPU hosts: profiles by PCI id, and what sysfs and ``nvidia-smi -q -x`` say of a host.

Nothing here runs a command or writes; roots are arguments, so that a capture is read like a live host.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path
from xml.etree import ElementTree

NVIDIA_VENDOR = "0x10de"
#: PCI base class and subclass of what is counted: 3D and VGA controllers are GPUs, a bridge of subclass 80 is an NVSwitch.
GPU_CLASSES = ("0x0302", "0x0300")
NVSWITCH_CLASS = "0x0680"

#: Hardware that was vouched for. The PCI device id decides, never a product name: "H20" is a prefix of "H200".
#: memory_mib is what nvidia-smi reports as total, nvlinks is the number of links of each GPU.
PROFILES: dict[str, dict[str, t.Any]] = {
    "h20_141g": {
        "product": "NVIDIA H20-3e",
        "pci_device": "232c",
        "gpus": 8,
        "memory_mib": 143771,
        "nvswitches": 4,
        "nvlinks": 18,
    },
    "h20_96g": {
        "product": "NVIDIA H20",
        "pci_device": "2329",
        "gpus": 8,
        "memory_mib": 97871,
        "nvswitches": 4,
        "nvlinks": 18,
    },
}


def read_text(path: Path) -> str:
    """The stripped text of a small file, "" where it is absent or unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def pci_devices(sysfs: Path) -> tuple[list[dict[str, t.Any]], list[dict[str, t.Any]]]:
    """NVIDIA GPUs and NVSwitches on the PCI bus below ``sysfs``, ordered by address.

    Each is ``{address, device, numa_node, link_width, link_width_max}``; an absent attribute is None.
    """
    gpus: list[dict[str, t.Any]] = []
    nvswitches: list[dict[str, t.Any]] = []
    for device in sorted((sysfs / "bus/pci/devices").glob("*")):
        if read_text(device / "vendor") != NVIDIA_VENDOR:
            continue
        entry = {
            "address": device.name,
            "device": read_text(device / "device").removeprefix("0x"),
            "numa_node": _integer(read_text(device / "numa_node")),
            "link_width": _integer(read_text(device / "current_link_width")),
            "link_width_max": _integer(read_text(device / "max_link_width")),
        }
        pci_class = read_text(device / "class")[:6]
        if pci_class in GPU_CLASSES:
            gpus.append(entry)
        elif pci_class == NVSWITCH_CLASS:
            nvswitches.append(entry)
    return gpus, nvswitches


def match_profile(gpus: list[dict[str, t.Any]]) -> str | None:
    """The profile whose PCI device id every GPU has; None for no GPU, mixed GPUs or an id that no profile names."""
    devices = {gpu["device"] for gpu in gpus}
    for name, profile in PROFILES.items():
        if devices == {profile["pci_device"]}:
            return name
    return None


def parse_nvidia_smi(document: str) -> dict[str, t.Any]:
    """What ``nvidia-smi -q -x`` printed: ``{driver_version, cuda_version, gpus: [...]}``; N/A and absent fields are None.

    Raises ValueError where the text is no such document.
    """
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 (the driver's own program printed it)
    except ElementTree.ParseError as error:
        raise ValueError(f"nvidia-smi did not print XML: {error}") from error
    if root.tag != "nvidia_smi_log":
        raise ValueError(f"nvidia-smi printed <{root.tag}> where <nvidia_smi_log> was expected")
    return {
        "driver_version": _field(root, "driver_version"),
        "cuda_version": _field(root, "cuda_version"),
        "gpus": [_gpu(gpu) for gpu in root.iter("gpu")],
    }


def parse_topology(matrix: str) -> list[tuple[str, str, str]]:
    """Each pair of GPUs of ``nvidia-smi topo -m`` with the name of their connection, such as ("GPU0", "GPU1", "NV18")."""
    lines = [line.split() for line in re.sub(r"\x1b\[\d*m", "", matrix).splitlines()]
    header = next((line for line in lines if line and line[0] == "GPU0"), [])
    columns = [name for name in header if re.fullmatch(r"GPU\d+", name)]
    rows = {line[0]: line[1:] for line in lines if line and line[0] in columns and line != header}
    return [
        (first, second, rows[first][columns.index(second)])
        for number, first in enumerate(columns)
        for second in columns[number + 1 :]
        if first in rows
    ]


def _gpu(gpu: ElementTree.Element) -> dict[str, t.Any]:
    return {
        "address": _short_address(gpu.get("id", "")),
        "product": _field(gpu, "product_name"),
        "uuid": _field(gpu, "uuid"),
        "memory_mib": _integer(_field(gpu, "fb_memory_usage/total")),
        "memory_used_mib": _integer(_field(gpu, "fb_memory_usage/used")),
        "ecc": _field(gpu, "ecc_mode/current_ecc"),
        "mig": _field(gpu, "mig_mode/current_mig"),
        "persistence": _field(gpu, "persistence_mode"),
        "row_remap_pending": _field(gpu, "remapped_rows/remapped_row_pending"),
        "row_remap_failure": _field(gpu, "remapped_rows/remapped_row_failure"),
        "fabric_state": _field(gpu, "fabric/state"),
        "fabric_status": _field(gpu, "fabric/status"),
        "processes": [_process(process) for process in gpu.iter("process_info")],
    }


def _process(process: ElementTree.Element) -> dict[str, t.Any]:
    return {
        "pid": _integer(_field(process, "pid")),
        "name": _field(process, "process_name"),
        "memory_mib": _integer(_field(process, "used_memory")),
    }


def _field(element: ElementTree.Element, path: str) -> str | None:
    text = (element.findtext(path) or "").strip()
    return None if text in ("", "N/A") else text


def _integer(text: str | None) -> int | None:
    found = re.match(r"-?\d+", text or "")
    return int(found.group()) if found else None


def _short_address(address: str) -> str:
    """``00000000:5D:00.0`` as nvidia-smi writes it, ``0000:5d:00.0`` as sysfs does."""
    domain, separator, rest = address.partition(":")
    return f"{domain[-4:]}{separator}{rest}".lower()
