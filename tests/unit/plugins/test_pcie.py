# SPDX-License-Identifier: Apache-2.0
"""What stands between GPUs and adapters over PCIe, from a sysfs and configuration spaces that are made here."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _pcie

ROOT_PORT, UPSTREAM_PORT, DOWNSTREAM_PORT = 0x4, 0x5, 0x6
#: SrcValid, ReqRedir, CmpltRedir, UpstreamFwd: what Linux sets wherever an IOMMU is on.
ALL = 0x1D
GPU, NIC = "0000:1b:00.0", "0000:1c:00.0"
SWITCH = ("0000:17:01.0", "0000:18:00.0")
ABOVE = {GPU: (*SWITCH, "0000:19:00.0"), NIC: (*SWITCH, "0000:19:01.0")}
TYPES = {
    SWITCH[0]: ROOT_PORT,
    SWITCH[1]: UPSTREAM_PORT,
    "0000:19:00.0": DOWNSTREAM_PORT,
    "0000:19:01.0": DOWNSTREAM_PORT,
}


def space(port_type: int, acs: int | None) -> bytes:
    """A configuration space: power management before PCI Express, and error reporting before ACS."""
    config = bytearray(4096)
    config[0x34] = 0x40
    struct.pack_into("<BB", config, 0x40, 0x01, 0x60)
    struct.pack_into("<BBH", config, 0x60, 0x10, 0, port_type << 4 | 2)
    struct.pack_into("<I", config, 0x100, (0x148 << 20 if acs is not None else 0) | 1 << 16 | 0x0001)
    if acs is not None:
        struct.pack_into("<IHH", config, 0x148, 1 << 16 | 0x000D, 0x5F, acs)
    return bytes(config)


def write(root: Path, acs: dict[str, int], domain: str = "") -> None:
    """A switch with a GPU and an adapter below it, as sysfs nests them; where given, both are in groups of an IOMMU."""
    bus = root / "sys/bus/pci/devices"
    bus.mkdir(parents=True)
    tree = root / "sys/devices/pci0000:17"
    for number, (device, above) in enumerate(ABOVE.items()):
        folder = tree
        for address in (*above, device):
            folder /= address
            folder.mkdir(parents=True, exist_ok=True)
            link = bus / address
            if not link.is_symlink():
                link.symlink_to(Path("../../../devices/pci0000:17") / folder.relative_to(tree))
            (folder / "config").write_bytes(space(TYPES.get(address, 0), acs.get(address, 0)))
        if domain:
            group = root / f"sys/kernel/iommu_groups/{number}"
            group.mkdir(parents=True)
            (group / "type").write_text(f"{domain}\n")
            (folder / "iommu_group").symlink_to(group)


def test_bridges_above_a_device_from_the_root_down(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert tuple(_pcie.bridges(tmp_path, GPU)) == ABOVE[GPU]


def test_switch_that_redirects_is_named_once_and_other_bridges_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, {SWITCH[0]: ALL, "0000:19:00.0": ALL, "0000:19:01.0": 0x0011})
    found = _pcie.peer_to_peer(tmp_path, [GPU, NIC, GPU, "0000:ff:00.0"])
    assert found == {
        "redirecting": [{"address": "0000:19:00.0", "redirects": ["ReqRedir", "CmpltRedir"]}],
        "translated": [],
    }


@pytest.mark.parametrize(
    ("domain", "translated"), [("", []), ("identity", []), ("DMA", [GPU, NIC]), ("DMA-FQ", [GPU, NIC])]
)
def test_devices_whose_addresses_the_iommu_translates(domain: str, translated: list[str], tmp_path: Path) -> None:
    write(tmp_path, {}, domain)
    assert _pcie.peer_to_peer(tmp_path, [GPU, NIC])["translated"] == translated


@pytest.mark.parametrize(
    ("config", "how"),
    [
        (space(DOWNSTREAM_PORT, ALL), ["ReqRedir", "CmpltRedir"]),
        (space(DOWNSTREAM_PORT, 0x4), ["ReqRedir"]),
        (space(DOWNSTREAM_PORT, 0x8), ["CmpltRedir"]),
        (space(DOWNSTREAM_PORT, 0x51), []),
        (space(DOWNSTREAM_PORT, None), []),
        (space(ROOT_PORT, ALL), []),
        (space(UPSTREAM_PORT, ALL), []),
        (space(DOWNSTREAM_PORT, ALL)[:256], []),  # what a user who is not root may read
        (space(DOWNSTREAM_PORT, ALL)[:64], []),
        (b"", []),
    ],
)
def test_what_a_configuration_space_says(config: bytes, how: list[str]) -> None:
    assert _pcie.redirects(config) == how


def test_list_of_capabilities_that_leads_back_to_itself_ends() -> None:
    config = bytearray(space(DOWNSTREAM_PORT, ALL))
    config[0x41] = 0x40
    assert _pcie.redirects(bytes(config)) == []
    config = bytearray(space(DOWNSTREAM_PORT, None))
    struct.pack_into("<I", config, 0x100, 0x100 << 20 | 1)
    assert _pcie.redirects(bytes(config)) == []


def test_captured_host_without_a_bus_says_nothing(tmp_path: Path) -> None:
    assert _pcie.peer_to_peer(tmp_path, [GPU]) == {"redirecting": [], "translated": []}
