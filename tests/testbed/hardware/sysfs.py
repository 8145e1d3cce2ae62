# SPDX-License-Identifier: Apache-2.0
"""Folders that a host mounts over /sys/firmware and as /sys/class/infiniband. Both may be mounted: they are changed in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Protocol

SECURE_BOOT = "efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
BOOT_AND_RUNTIME_SERVICE_ACCESS = 0x06


class Port(Protocol):
    """What these files say of a port."""

    @property
    def device(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def link_layer(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def phys_state(self) -> str: ...
    @property
    def rate(self) -> str: ...
    @property
    def netdev(self) -> str: ...
    @property
    def firmware(self) -> str: ...
    @property
    def traffic_class(self) -> int | None: ...
    @property
    def gids(self) -> Mapping[int, str]: ...


def write_firmware(secure_boot: bool | None, directory: Path) -> None:
    """Write the UEFI variable of Secure Boot: its attributes and its value; without UEFI (None) there is none."""
    _empty(directory)
    if secure_boot is not None:
        variable = directory / SECURE_BOOT
        variable.parent.mkdir(parents=True)
        variable.write_bytes(bytes([BOOT_AND_RUNTIME_SERVICE_ACCESS, 0, 0, 0, secure_boot]))


def write_infiniband(ports: Iterable[Port], directory: Path) -> None:
    """Write one folder a card, with its port and the way to its PCI device."""
    _empty(directory)
    for card in ports:
        port = directory / card.device / "ports" / str(card.port)
        (port / "gid_attrs/ndevs").mkdir(parents=True)
        for name in ("link_layer", "state", "phys_state", "rate"):
            (port / name).write_text(f"{getattr(card, name)}\n", encoding="ascii")
        if card.netdev:
            (port / "gid_attrs/ndevs/0").write_text(f"{card.netdev}\n", encoding="ascii")
        for index, address in card.gids.items():
            for name, text in (("gids", IPv6Address(address).exploded), ("gid_attrs/types", "RoCE v2")):
                (port / name).mkdir(exist_ok=True)
                (port / name / str(index)).write_text(f"{text}\n", encoding="ascii")
        (directory / card.device / "fw_ver").write_text(f"{card.firmware}\n", encoding="ascii")
        if card.traffic_class is not None:
            (directory / card.device / "tc" / str(card.port)).mkdir(parents=True)
            (directory / card.device / "tc" / str(card.port) / "traffic_class").write_text(
                f"Global tclass={card.traffic_class}\n", encoding="ascii"
            )
        (directory / card.device / "device").symlink_to(f"/sys/bus/pci/devices/{card.address}")


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        shutil.rmtree(path)
