# SPDX-License-Identifier: Apache-2.0
"""What is read of GPUs: the PCI bus, nvidia-smi's XML, the topology, and gpu_info, which puts them together."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _hardware
from testbed import hardware
from unit.plugins.support import DRIVER, load_driver, run_module, write_program, write_sysfs

H20_3E, H20, L40S = "232c", "2329", "26b9"


def gpus_of(*devices: str) -> list[dict[str, Any]]:
    return [{"address": f"0000:{number:02x}:00.0", "device": device} for number, device in enumerate(devices)]


def ask(program: Path, *arguments: str) -> str:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def with_faults(**faults: Any) -> hardware.Description:
    """Eight GPUs of which the first has these faults."""
    sound = hardware.load("h20_141g")
    return replace(sound, gpus=[replace(sound.gpus[0], **faults), *sound.gpus[1:]])


@pytest.mark.parametrize("name", hardware.names())
def test_the_bus_shows_the_described_devices_in_order(name: str, tmp_path: Path) -> None:
    description = hardware.load(name)
    gpus, nvswitches = _hardware.pci_devices(write_sysfs(description, tmp_path))
    assert {gpu["address"]: gpu["numa_node"] for gpu in gpus} == {
        gpu.address: gpu.numa_node for gpu in description.gpus
    }
    assert {switch["address"]: switch["numa_node"] for switch in nvswitches} == description.nvswitches
    assert [gpu["address"] for gpu in gpus] == sorted(gpu["address"] for gpu in gpus)
    assert {f"10de:{gpu['device']}" for gpu in gpus} == {description.gpu.pci_id}
    assert {(gpu["link_width"], gpu["link_width_max"]) for gpu in gpus} == {(16, 16)}


def test_a_narrow_link_shows_beside_what_it_could_be(tmp_path: Path) -> None:
    gpus, _nvswitches = _hardware.pci_devices(write_sysfs(with_faults(pcie_width=4), tmp_path))
    assert [(gpu["link_width"], gpu["link_width_max"]) for gpu in gpus] == [(4, 16)] + [(16, 16)] * 7


def test_other_devices_are_not_counted_and_absent_attributes_are_none(tmp_path: Path) -> None:
    bus = tmp_path / "bus/pci/devices"
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
    absent = {"numa_node": None, "link_width": None, "link_width_max": None}
    assert _hardware.pci_devices(tmp_path) == ([{"address": "0000:01:00.0", "device": H20_3E} | absent], [])
    assert _hardware.pci_devices(tmp_path / "absent") == ([], [])


@pytest.mark.parametrize(
    ("devices", "profile"),
    [
        ([H20_3E] * 8, "h20_141g"),
        ([H20_3E] * 7, "h20_141g"),
        ([H20] * 8, "h20_96g"),
        ([H20_3E] * 7 + [H20], None),
        ([L40S] * 8, None),
        ([], None),
    ],
)
def test_a_profile_is_matched_by_the_device_id_of_every_gpu(devices: list[str], profile: str | None) -> None:
    assert _hardware.match_profile(gpus_of(*devices)) == profile


@pytest.mark.parametrize("name", ["h20_141g", "h20_96g"])
def test_a_profile_says_what_its_hardware_says(name: str) -> None:
    profile, described = _hardware.PROFILES[name], hardware.load(name)
    assert profile == {
        "product": described.gpu.model,
        "pci_device": described.gpu.pci_id.removeprefix("10de:"),
        "gpus": len(described.gpus),
        "memory_mib": described.gpu.memory_mib,
        "nvswitches": len(described.nvswitches),
        "nvlinks": described.gpu.nvlinks,
    }


def xml_of(description: hardware.Description, root: Path) -> str:
    write_sysfs(description, root)
    return ask(load_driver(root), "-q", "-x")


def test_the_xml_of_a_healthy_host(tmp_path: Path) -> None:
    smi = _hardware.parse_nvidia_smi(xml_of(hardware.load("h20_141g"), tmp_path))
    assert (smi["driver_version"], smi["cuda_version"]) == (DRIVER, "13.0")
    assert [gpu["address"] for gpu in smi["gpus"]] == [gpu.address for gpu in hardware.load("h20_141g").gpus]
    assert len({gpu["uuid"] for gpu in smi["gpus"]}) == 8
    first = {key: value for key, value in smi["gpus"][0].items() if key not in {"address", "uuid"}}
    assert first == {
        "product": "NVIDIA H20-3e",
        "memory_mib": 143771,
        "memory_used_mib": 0,
        "ecc": "Enabled",
        "mig": "Disabled",
        "persistence": "Disabled",
        "row_remap_pending": "No",
        "row_remap_failure": "No",
        "fabric_state": "In Progress",
        "fabric_status": None,
        "processes": [],
    }


@pytest.mark.parametrize(
    ("fault", "field", "seen"),
    [
        ({"ecc": False}, "ecc", "Disabled"),
        ({"mig": True}, "mig", "Enabled"),
        ({"row_remap_pending": True}, "row_remap_pending", "Yes"),
        ({"row_remap_failed": True}, "row_remap_failure", "Yes"),
        ({"memory_used_mib": 135009}, "memory_used_mib", 135009),
    ],
)
def test_a_fault_shows_in_the_gpu_that_has_it(fault: dict[str, Any], field: str, seen: object, tmp_path: Path) -> None:
    first, *others = _hardware.parse_nvidia_smi(xml_of(with_faults(**fault), tmp_path))["gpus"]
    assert first[field] == seen
    assert seen not in [gpu[field] for gpu in others]


PROCESSES = """
<nvidia_smi_log><gpu id="00000000:18:00.0"><processes>
  <process_info>
    <gpu_instance_id>N/A</gpu_instance_id> <compute_instance_id>N/A</compute_instance_id>
    <pid>4711</pid> <type>C</type> <process_name>VLLM::Worker_TP0</process_name> <used_memory>128450 MiB</used_memory>
  </process_info>
  <process_info> <pid>4712</pid> <type>C</type> <process_name></process_name> <used_memory>N/A</used_memory> </process_info>
</processes></gpu></nvidia_smi_log>
"""


def test_the_processes_of_a_gpu_are_named() -> None:
    [gpu] = _hardware.parse_nvidia_smi(PROCESSES)["gpus"]
    assert gpu["processes"] == [
        {"pid": 4711, "name": "VLLM::Worker_TP0", "memory_mib": 128450},
        {"pid": 4712, "name": None, "memory_mib": None},
    ]


def blank(_parent: ET.Element, child: ET.Element) -> None:
    child.text = "N/A"


@pytest.mark.parametrize("spoil", [blank, ET.Element.remove], ids=["not available", "absent"])
def test_a_field_that_says_nothing_is_none(spoil: Callable[[ET.Element, ET.Element], None], tmp_path: Path) -> None:
    root = ET.fromstring(xml_of(hardware.load("h20_141g"), tmp_path))  # noqa: S314 (our own text)
    for gpu in root.findall("gpu")[1:]:
        root.remove(gpu)
    whole = ET.tostring(root, encoding="unicode")
    vanished = set()
    for number in range(len([child for parent in root.iter() for child in parent])):
        copy = ET.fromstring(whole)  # noqa: S314 (our own text)
        parent, child = [(parent, child) for parent in copy.iter() for child in parent][number]
        spoil(parent, child)
        smi = _hardware.parse_nvidia_smi(ET.tostring(copy, encoding="unicode"))
        fields = {**smi, **next(iter(smi["gpus"]), {})}
        vanished |= {name for name, value in fields.items() if value is None}
        assert not {"", "N/A"} & {value for value in fields.values() if isinstance(value, str)}
    assert vanished == fields.keys() - {"gpus", "address", "processes"}


def test_an_empty_log_has_no_gpus() -> None:
    smi = _hardware.parse_nvidia_smi("<nvidia_smi_log/>")
    assert smi == {"driver_version": None, "cuda_version": None, "gpus": []}


@pytest.mark.parametrize("text", ["", "NVIDIA-SMI has failed", "<nvidia_smi_log>", "<html></html>"])
def test_what_is_no_log_of_nvidia_smi_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nvidia"):
        _hardware.parse_nvidia_smi(text)


def topology(description: hardware.Description, root: Path) -> dict[tuple[str, str], str]:
    write_sysfs(description, root)
    pairs = _hardware.parse_topology(ask(load_driver(root), "topo", "-m"))
    return {(first, second): link for first, second, link in pairs}


def test_every_pair_of_eight_gpus_is_joined_once(tmp_path: Path) -> None:
    pairs = topology(hardware.load("h20_141g"), tmp_path)
    assert set(pairs) == {(f"GPU{low}", f"GPU{high}") for high in range(8) for low in range(high)}
    assert set(pairs.values()) == {"NV18"}


def test_a_pair_that_is_joined_otherwise_stands_out(tmp_path: Path) -> None:
    sound = hardware.load("h20_141g")
    pair = [sound.gpus[number].address for number in (2, 6)]
    pairs = topology(replace(sound, phb_pairs=[pair]), tmp_path)
    assert {names for names, link in pairs.items() if link != "NV18"} == {("GPU2", "GPU6")}
    assert pairs["GPU2", "GPU6"] == "PHB"


@pytest.mark.parametrize(
    ("matrix", "pairs"),
    [
        (
            "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\x1b[0m\nGPU0\t X \tNV18\t0-47\nGPU1\tNV18\t X \t0-47\n",
            [("GPU0", "GPU1", "NV18")],
        ),
        (
            "\tGPU0\tGPU1\tNIC0\nGPU0\t X \tSYS\tPIX\nGPU1\tSYS\t X \tSYS\nNIC0\tPIX\tSYS\t X \n",
            [("GPU0", "GPU1", "SYS")],
        ),
        ("\tGPU0\tCPU Affinity\nGPU0\t X \t0-47\n", []),
        ("", []),
    ],
    ids=["escapes", "a network card beside", "one GPU", "nothing"],
)
def test_matrices_of_other_shapes(matrix: str, pairs: list[tuple[str, str, str]]) -> None:
    assert _hardware.parse_topology(matrix) == pairs


def test_gpu_info_answers_before_there_is_a_driver(tmp_path: Path) -> None:
    sysfs = write_sysfs(hardware.load("h20_141g"), tmp_path)
    result = run_module("gpu_info", sysfs=str(sysfs), nvidia_smi=str(tmp_path / "nvidia-smi"), topology=True)
    assert (result["profile"], len(result["pci_gpus"]), len(result["pci_nvswitches"])) == ("h20_141g", 8, 4)
    assert (result["smi"], result["smi_error"]) == (None, f"{tmp_path}/nvidia-smi is not installed")
    assert (result["module_version"], result["nouveau_loaded"], result["topology"]) == ("", False, [])
    assert (result["changed"], result["profiles"]) == (False, _hardware.PROFILES)


def test_gpu_info_sees_nouveau(tmp_path: Path) -> None:
    sysfs = write_sysfs(replace(hardware.load("h20_141g"), nouveau_loaded=True), tmp_path)
    assert run_module("gpu_info", sysfs=str(sysfs))["nouveau_loaded"] is True


@pytest.mark.parametrize("check", [False, True])
def test_gpu_info_tells_the_bus_and_the_driver_apart(tmp_path: Path, *, check: bool) -> None:
    sysfs = write_sysfs(hardware.load("h20_141g_7_gpus"), tmp_path)
    params = {"sysfs": str(sysfs), "nvidia_smi": str(load_driver(tmp_path))}
    result = run_module("gpu_info", check=check, topology=True, **params)
    assert (len(result["pci_gpus"]), len(result["smi"]["gpus"]), len(result["topology"])) == (8, 7, 7 * 6 // 2)
    assert (result["module_version"], result["smi_error"]) == (DRIVER, "")
    assert run_module("gpu_info", check=check, **params)["topology"] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('No devices were found'); sys.exit(6)", "No devices were found"),
        ("print('WARNING: no XML today')", "nvidia-smi did not print XML"),
    ],
)
def test_gpu_info_says_why_nvidia_smi_does_not_answer(body: str, reason: str, tmp_path: Path) -> None:
    program = write_program(tmp_path / "bin/nvidia-smi", body)
    result = run_module("gpu_info", sysfs=str(tmp_path), nvidia_smi=str(program), topology=True)
    assert (result["smi"], result["topology"], result["profile"]) == (None, [], None)
    assert result["smi_error"].startswith(reason)
