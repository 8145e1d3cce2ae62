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
from testbed.hardware import pci, sysfs

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


def test_a_host_that_is_described_anew_has_the_kernel_modules_of_its_description(tmp_path: Path) -> None:
    healthy = hardware.load("h20_141g")
    hardware.write_host(healthy, tmp_path)
    (tmp_path / "module/nvidia").mkdir()
    hardware.write_host(replace(healthy, nouveau_loaded=True), tmp_path, renew=True)
    assert {path.name for path in (tmp_path / "module").iterdir()} == {"nvidia", "nouveau"}
    hardware.write_host(healthy, tmp_path, renew=True)
    assert {path.name for path in (tmp_path / "module").iterdir()} == {"nvidia"}


def test_gpus_come_and_go_by_their_addresses() -> None:
    faults = {"gpus": {"0000:18:00.0": None, "0000:dc:00.0": {"numa_node": 1}, "0000:2a:00.0": {"mig": True}}}
    gpus = {gpu.address: gpu for gpu in hardware.compose("x", {"base": "h20_141g", "faults": faults}).gpus}
    assert len(gpus) == 8
    assert "0000:18:00.0" not in gpus
    assert gpus["0000:dc:00.0"].numa_node == 1
    assert gpus["0000:2a:00.0"].mig
    none = hardware.compose(
        "x", {"base": "h20_141g", "faults": {"gpus": dict.fromkeys(gpus.keys() - {"0000:dc:00.0"})}}
    )
    assert [gpu.address for gpu in none.gpus] == ["0000:18:00.0"]


def test_a_gpu_may_be_of_another_model_and_in_other_hands(tmp_path: Path) -> None:
    faults = {"gpus": {"0000:18:00.0": {"pci_id": "10de:2329"}, "0000:2a:00.0": {"driver": "vfio-pci"}}}
    hardware.write_host(hardware.compose("x", {"base": "h20_141g", "faults": faults}), tmp_path)
    assert (tmp_path / "pci/0000:18:00.0/device").read_text() == "0x2329\n"
    assert (tmp_path / "pci/0000:2a:00.0/driver").readlink().name == "vfio-pci"
    hardware.write_host(hardware.load("h20_141g"), tmp_path)
    assert (tmp_path / "pci/0000:18:00.0/device").read_text() == "0x232c\n"
    assert not (tmp_path / "pci/0000:2a:00.0/driver").is_symlink()


@pytest.mark.parametrize(("secure_boot", "value"), [(True, b"\6\0\0\0\1"), (False, b"\6\0\0\0\0"), (None, None)])
def test_the_firmware_says_whether_secure_boot_is_on(
    secure_boot: bool | None, value: bytes | None, tmp_path: Path
) -> None:
    sysfs.write_firmware(not secure_boot, tmp_path)
    sysfs.write_firmware(secure_boot, tmp_path)
    variable = tmp_path / sysfs.SECURE_BOOT
    assert (variable.read_bytes() if variable.exists() else None) == value


def test_infiniband_and_roce_ports_lead_to_their_devices(tmp_path: Path) -> None:
    ports = [
        {"device": "mlx5_0", "address": "0000:19:00.0"},
        {"device": "mlx5_1", "address": "0000:29:00.0", "link_layer": "Ethernet", "netdev": "ens1", "state": "1: DOWN"},
    ]
    hardware.write_host(hardware.compose("x", {"base": "h20_141g", "faults": {"infiniband": ports}}), tmp_path)
    cards = tmp_path / "sys/class/infiniband"
    assert (cards / "mlx5_0/ports/1/rate").read_text() == "400 Gb/sec (4X NDR)\n"
    assert (cards / "mlx5_1/ports/1/state").read_text() == "1: DOWN\n"
    assert (cards / "mlx5_0/fw_ver").read_text() == "28.43.2566\n"
    assert (cards / "mlx5_1/device").readlink().name == "0000:29:00.0"
    assert (tmp_path / "pci/0000:29:00.0/net/ens1").is_dir()
    assert (tmp_path / "pci/0000:19:00.0/class").read_text() == "0x020700\n"
    hardware.write_host(hardware.load("h20_141g"), tmp_path)
    assert list(cards.iterdir()) == []


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
