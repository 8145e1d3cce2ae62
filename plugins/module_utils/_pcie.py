# SPDX-License-Identifier: Apache-2.0
"""What stands between GPUs and adapters that talk directly over PCIe: switches that send them by the root complex (ACS), and an IOMMU that translates.

Read from sysfs below a root; what is absent or may not be read says nothing.
"""

from __future__ import annotations

import re
import struct
import typing as t
from pathlib import Path

from ansible_collections.h20.fleet.plugins.module_utils import _sysfs

ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
#: Capabilities of the configuration space: the list's beginning, PCI Express, and the type of a switch's port towards its devices.
CAPABILITIES, EXPRESS, DOWNSTREAM_PORT = 0x34, 0x10, 0x6
#: Extended ones: where they begin, and Access Control Services with the bits that redirect requests and completions between peers.
EXTENDED, ACS = 0x100, 0x000D
REDIRECTS = {0x0004: "ReqRedir", 0x0008: "CmpltRedir"}
#: Types of an IOMMU group's domain in which addresses are not translated.
UNTRANSLATED = ("identity",)


def peer_to_peer(root: Path, addresses: t.Iterable[str]) -> dict[str, t.Any]:
    """``{redirecting, translated}``: ports of switches above these devices that redirect, each with how, and the devices behind an IOMMU."""
    devices = sorted({address for address in addresses if (root / _sysfs.PCI_DEVICES / address).exists()})
    above = sorted({bridge for address in devices for bridge in bridges(root, address)})
    redirecting = [
        {"address": address, "redirects": how}
        for address in above
        if (how := redirects(_config(root / _sysfs.PCI_DEVICES / address / "config")))
    ]
    return {
        "redirecting": redirecting,
        "translated": [address for address in devices if domain(root, address) not in ("", *UNTRANSLATED)],
    }


def bridges(root: Path, address: str) -> list[str]:
    """The addresses of the bridges above a device, the outermost first."""
    device = (root / _sysfs.PCI_DEVICES / address).resolve()
    return [part for part in device.parent.parts if ADDRESS.fullmatch(part)]


def domain(root: Path, address: str) -> str:
    """How the IOMMU treats a device's addresses: identity, DMA, DMA-FQ, ...; "" where no IOMMU does."""
    return _sysfs.read_text(root / _sysfs.PCI_DEVICES / address / "iommu_group/type")


def redirects(config: bytes) -> list[str]:
    """How a switch's port redirects what its devices send each other; nothing of a port that does not, or is none of a switch's."""
    if _port_type(config) != DOWNSTREAM_PORT:
        return []
    control = _word(config, offset + 6) if (offset := _extended(config, ACS)) else 0
    return [name for bit, name in REDIRECTS.items() if control & bit]


def _port_type(config: bytes) -> int | None:
    """The type of a PCI Express port; None where it is no PCI Express."""
    offset = _byte(config, CAPABILITIES) & 0xFC
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        if _byte(config, offset) == EXPRESS:
            return _word(config, offset + 2) >> 4 & 0xF
        offset = _byte(config, offset + 1) & 0xFC
    return None


def _extended(config: bytes, wanted: int) -> int:
    """Where an extended capability lies; 0 where there is none."""
    offset = EXTENDED
    seen: set[int] = set()
    while offset >= EXTENDED and offset not in seen and offset + 4 <= len(config):
        seen.add(offset)
        (header,) = struct.unpack_from("<I", config, offset)
        if header & 0xFFFF == wanted:
            return offset
        offset = header >> 20 & 0xFFC
    return 0


def _byte(config: bytes, offset: int) -> int:
    return config[offset] if offset < len(config) else 0


def _word(config: bytes, offset: int) -> int:
    return _byte(config, offset) | _byte(config, offset + 1) << 8


def _config(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
