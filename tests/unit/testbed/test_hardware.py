# SPDX-License-Identifier: Apache-2.0
"""Host descriptions and the PCI tree that is made of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from testbed import hardware
from testbed.hardware import pci

ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file under a directory: relative path -> bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", hardware.names())
def test_a_description_shows_all_its_devices_on_the_bus(name: str, tmp_path: Path) -> None:
    description = hardware.load(name)
    hardware.write_host(description, tmp_path / "h20-01")
    devices = {path.name: (path / "device").read_text().strip() for path in (tmp_path / "h20-01/pci").iterdir()}
    assert all(ADDRESS.fullmatch(address) for address in devices)
    gpu, switch = (f"0x{model.pci_id.partition(':')[2]}" for model in (description.gpu, description.nvswitch))
    assert list(devices.values()).count(gpu) == len(description.gpus)
    assert list(devices.values()).count(switch) == len(description.nvswitches)


def test_the_real_lspci_reads_the_tree(tmp_path: Path) -> None:
    if shutil.which("lspci") is None:
        pytest.skip("lspci is not installed (package pciutils)")
    slow = replace(hardware.load("h20_141g"), name="slow")
    slow.gpus[2] = replace(slow.gpus[2], pcie_width=8)
    hardware.write_host(slow, tmp_path)
    (tmp_path / "devices").symlink_to("pci")
    command = ["lspci", "-O", f"sysfs.path={tmp_path}", "-D"]
    listing = subprocess.run([*command, "-n"], capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r" 0302: 10de:232c ", listing)) == 8
    assert len(re.findall(r" 0680: 10de:22a3 ", listing)) == 4
    detail = subprocess.run([*command, "-vv", "-s", "0000:3a:00.0"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"LnkCap:.*Speed 32GT/s, Width x16", detail)
    assert re.search(r"LnkSta:.*Width x8", detail)


def test_writing_a_host_again_changes_nothing_and_keeps_what_containers_have_mounted(tmp_path: Path) -> None:
    host = tmp_path / "h20-01"
    hardware.write_host(hardware.load("h20_141g"), host)
    loaded = host / "module/nvidia/version"
    loaded.parent.mkdir()
    loaded.write_text("580.173.02\n")
    before, inodes = (
        contents(host),
        {path: path.stat().st_ino for path in (host / "hardware.json", host / "pci", host / "module")},
    )
    hardware.write_host(hardware.load("h20_141g"), host)
    assert contents(host) == before
    assert {path: path.stat().st_ino for path in inodes} == inodes


def test_another_description_replaces_the_devices(tmp_path: Path) -> None:
    hardware.write_host(hardware.load("h20_141g"), tmp_path)
    hardware.write_host(hardware.load("unknown_gpu"), tmp_path)
    assert {(path / "device").read_text() for path in (tmp_path / "pci").iterdir()} == {"0x26b9\n"}


def test_gpus_of_different_hosts_have_different_identities(tmp_path: Path) -> None:
    for host in ("h20-01", "h20-02"):
        hardware.write_host(hardware.load("h20_141g"), tmp_path / host)
    gpus = [
        gpu
        for host in ("h20-01", "h20-02")
        for gpu in json.loads((tmp_path / host / "hardware.json").read_text())["gpus"]
    ]
    assert len({gpu["uuid"] for gpu in gpus}) == len({gpu["serial"] for gpu in gpus}) == 16


def test_nouveau_is_there_from_the_start_and_not_again(tmp_path: Path) -> None:
    bare = replace(hardware.load("h20_141g"), nouveau_loaded=True)
    hardware.write_host(bare, tmp_path)
    nouveau = tmp_path / "module/nouveau"
    assert nouveau.is_dir()
    shutil.rmtree(nouveau)
    hardware.write_host(bare, tmp_path)
    assert not nouveau.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: h20_141g\nfaults: {gpus: {'0000:18:00.0': {melted: true}}}", "melted"),
        ("base: h20_141g\nfaults: {gpus: {'0000:ff:00.0': {ecc: false}}}", "0000:ff:00.0"),
        ("base: h20_141g\nfaults: {gremlins: 3}", "gremlins"),
        ("base: h20_999g", "h20_96g"),
    ],
)
def test_what_a_description_cannot_mean_is_refused_by_name(
    text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in hardware.HERE.glob("*.yml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "odd.yml").write_text(text)
    monkeypatch.setattr(hardware, "HERE", tmp_path)
    with pytest.raises(hardware.DescriptionError, match=expected):
        hardware.load("odd")


def test_the_configuration_space_agrees_with_the_text_files() -> None:
    device = pci.Device("0000:18:00.0", "10de:232c", "10de:1795", pci.CLASS_3D_CONTROLLER, 0, "0-3", 5, 16, 16)
    space, files = pci.config_space(device), pci.attributes(device)
    assert len(space) == 256
    for offset, name in ((0x00, "vendor"), (0x02, "device"), (0x2C, "subsystem_vendor"), (0x2E, "subsystem_device")):
        assert int.from_bytes(space[offset : offset + 2], "little") == int(files[name], 16)
    assert int.from_bytes(space[0x09:0x0C], "little") == int(files["class"], 16)
