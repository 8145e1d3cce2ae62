# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi prints, read: the capture of a real H200 and the stand-in's described hosts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _nvidia_smi
from testbed import hardware
from unit.plugins.support import DRIVER, load_driver, write_sysfs

CAPTURES = Path(__file__).parent / "captures"
H200 = (CAPTURES / "nvidia-smi-h200.xml").read_text(encoding="utf-8")
#: Fields whose type is their own: never None.
LISTS = {"throttle_reasons", "processes"}


def ask(program: Path, *arguments: str) -> str:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def with_faults(**faults: Any) -> hardware.Description:
    """Eight GPUs of which the first has these faults."""
    sound = hardware.load("h20_141g")
    return replace(sound, gpus=[replace(sound.gpus[0], **faults), *sound.gpus[1:]])


def xml_of(description: hardware.Description, root: Path) -> str:
    write_sysfs(description, root)
    return ask(load_driver(root), "-q", "-x")


def test_a_real_h200_is_read_to_the_last_field() -> None:
    assert _nvidia_smi.parse(H200) == {
        "driver_version": "580.159.04",
        "cuda_version": "13.0",
        "gpus": [
            {
                "address": "0000:00:06.0",
                "device": "2335",
                "product": "NVIDIA H200",
                "uuid": "GPU-00000000-0000-0000-0000-000000000000",
                "serial": "0000000000000",
                "memory_mib": 143771,
                "memory_used_mib": 0,
                "ecc": "Enabled",
                "ecc_pending": "Enabled",
                "ecc_uncorrectable": 0,
                "ecc_uncorrectable_aggregate": 0,
                "mig": "Disabled",
                "persistence": "Enabled",
                "row_remap_pending": "No",
                "row_remap_failure": "No",
                "recovery_action": "None",
                "pcie_width": 16,
                "pcie_width_max": 16,
                "throttle_reasons": ["gpu_idle"],
                "fabric_state": None,
                "fabric_status": None,
                "processes": [],
                "nvlinks": None,
            }
        ],
    }


def fields(value: object) -> Iterator[object]:
    """All values below a parsed document that hold no others."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from fields(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from fields(entry)
    else:
        yield value


def blank(_parent: ET.Element, child: ET.Element) -> None:
    for element in child.iter():
        element.text = "N/A"


def is_sound(smi: dict[str, Any]) -> None:
    """What holds whatever the document lacks: every key is there, and nothing is "N/A" or empty but an address."""
    assert smi.keys() == {"driver_version", "cuda_version", "gpus"}
    whole = _nvidia_smi.parse(H200)["gpus"][0]
    for gpu in smi["gpus"]:
        assert gpu.keys() == whole.keys()
        assert all(isinstance(gpu[name], list) for name in LISTS)
        assert "N/A" not in list(fields(gpu))
        assert "" not in list(fields({name: value for name, value in gpu.items() if name != "address"}))


@pytest.mark.parametrize("spoil", [blank, ET.Element.remove], ids=["not available", "absent"])
def test_no_element_of_a_real_document_is_indispensable(spoil: Callable[[ET.Element, ET.Element], None]) -> None:
    root = ET.fromstring(H200)  # noqa: S314 (our own text)
    vanished: set[str] = set()
    for number in range(len([child for parent in root.iter() for child in parent])):
        copy = ET.fromstring(H200)  # noqa: S314 (our own text)
        parent, child = [(parent, child) for parent in copy.iter() for child in parent][number]
        spoil(parent, child)
        smi = _nvidia_smi.parse(ET.tostring(copy, encoding="unicode"))
        is_sound(smi)
        answers = {**smi, **next(iter(smi["gpus"]), {})}
        vanished |= {name for name, value in answers.items() if value is None}
    assert vanished == answers.keys() - {"gpus", "address"} - LISTS


@pytest.mark.parametrize("text", ["N/A", "", "[N/A]", "Unknown Error", "\n\t"])
def test_a_document_that_says_nothing_is_a_gpu_of_which_nothing_is_known(text: str) -> None:
    root = ET.fromstring(H200)  # noqa: S314 (our own text)
    for element in root.iter():
        element.text = text
    smi = _nvidia_smi.parse(ET.tostring(root, encoding="unicode"))
    is_sound(smi)
    [gpu] = smi["gpus"]
    known = {name for name, value in gpu.items() if value not in (None, [])}
    # Of the fabric an unknown error is an answer.
    assert known == ({"address", "fabric_status"} if text == "Unknown Error" else {"address"})


@pytest.mark.parametrize("text", ["", "NVIDIA-SMI has failed", "<nvidia_smi_log>", "<html></html>"])
def test_what_is_no_log_of_nvidia_smi_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nvidia"):
        _nvidia_smi.parse(text)


def test_an_empty_log_has_no_gpus() -> None:
    assert _nvidia_smi.parse("<nvidia_smi_log/>") == {"driver_version": None, "cuda_version": None, "gpus": []}


def test_eight_gpus_of_the_stand_in_are_those_on_the_bus(tmp_path: Path) -> None:
    smi = _nvidia_smi.parse(xml_of(hardware.load("h20_141g"), tmp_path))
    assert smi["driver_version"] == DRIVER
    assert [gpu["address"] for gpu in smi["gpus"]] == [gpu.address for gpu in hardware.load("h20_141g").gpus]
    assert len({gpu["uuid"] for gpu in smi["gpus"]}) == len({gpu["serial"] for gpu in smi["gpus"]}) == 8
    assert {(gpu["device"], gpu["fabric_state"], gpu["fabric_status"]) for gpu in smi["gpus"]} == {
        ("232c", "In Progress", None)
    }


@pytest.mark.parametrize(
    ("fault", "field", "seen"),
    [
        ({"ecc": False}, "ecc", "Disabled"),
        ({"ecc": False}, "ecc_pending", "Disabled"),
        ({"mig": True}, "mig", "Enabled"),
        ({"row_remap_pending": True}, "row_remap_pending", "Yes"),
        ({"row_remap_pending": True}, "recovery_action", "Reset"),
        ({"row_remap_failed": True}, "row_remap_failure", "Yes"),
        ({"uncorrectable_errors": 3}, "ecc_uncorrectable", 3),
        ({"uncorrectable_errors": 3}, "ecc_uncorrectable_aggregate", 3),
        ({"pcie_width": 8}, "pcie_width", 8),
        ({"power_brake": True}, "throttle_reasons", ["hw_slowdown", "hw_power_brake_slowdown"]),
        ({"memory_used_mib": 135009}, "memory_used_mib", 135009),
    ],
)
def test_a_fault_shows_in_the_gpu_that_has_it(fault: dict[str, Any], field: str, seen: object, tmp_path: Path) -> None:
    first, *others = _nvidia_smi.parse(xml_of(with_faults(**fault), tmp_path))["gpus"]
    assert first[field] == seen
    assert seen not in [gpu[field] for gpu in others]


def gpu_with(xml: str) -> dict[str, Any]:
    gpu: dict[str, Any]
    [gpu] = _nvidia_smi.parse(f'<nvidia_smi_log><gpu id="00000000:18:00.0">{xml}</gpu></nvidia_smi_log>')["gpus"]
    return gpu


def test_all_kinds_of_uncorrectable_errors_are_added() -> None:
    gpu = gpu_with(
        """
        <ecc_errors>
          <volatile>
            <sram_correctable>100</sram_correctable> <sram_uncorrectable_parity>1</sram_uncorrectable_parity>
            <sram_uncorrectable_secded>2</sram_uncorrectable_secded> <dram_correctable>100</dram_correctable>
            <dram_uncorrectable>4</dram_uncorrectable>
          </volatile>
          <aggregate><sram_uncorrectable>8</sram_uncorrectable> <dram_uncorrectable>N/A</dram_uncorrectable></aggregate>
        </ecc_errors>"""
    )
    assert (gpu["ecc_uncorrectable"], gpu["ecc_uncorrectable_aggregate"]) == (7, 8)


@pytest.mark.parametrize("word", ["event", "throttle"])
def test_reasons_for_a_low_clock_have_one_name_in_every_driver(word: str) -> None:
    block, name = f"clocks_{word}_reasons", f"clocks_{word}_reason_sw_power_cap"
    assert gpu_with(f"<{block}><{name}>Active</{name}></{block}>")["throttle_reasons"] == ["sw_power_cap"]


def test_the_processes_of_a_gpu_are_named() -> None:
    gpu = gpu_with(
        """
        <processes>
          <process_info>
            <gpu_instance_id>N/A</gpu_instance_id> <compute_instance_id>N/A</compute_instance_id>
            <pid>4711</pid> <type>C</type> <process_name>VLLM::Worker_TP0</process_name> <used_memory>128450 MiB</used_memory>
          </process_info>
          <process_info> <pid>4712</pid> <process_name></process_name> <used_memory>N/A</used_memory> </process_info>
        </processes>"""
    )
    assert gpu["processes"] == [
        {"pid": 4711, "name": "VLLM::Worker_TP0", "memory_mib": 128450},
        {"pid": 4712, "name": None, "memory_mib": None},
    ]


def links_of(description: hardware.Description, root: Path) -> list[dict[str, Any]]:
    write_sysfs(description, root)
    return list(_nvidia_smi.parse_nvlinks(ask(load_driver(root), "nvlink", "--status")).values())


def test_links_that_are_down_stand_out_in_their_gpu(tmp_path: Path) -> None:
    first, *others = links_of(with_faults(nvlinks_down=[3, 17]), tmp_path)
    assert first == {"active": 16, "inactive": [3, 17]}
    assert others == [{"active": 18, "inactive": []}] * 7


NO_LINKS = """\
GPU 0: NVIDIA H200 (UUID: GPU-a)
NVML: Unable to retrieve NVLink information as all links are inActive
"""


@pytest.mark.parametrize(
    ("text", "links"),
    [
        (
            "GPU 0: NVIDIA H20-3e (UUID: GPU-a)\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n",
            {"GPU-a": {"active": 1, "inactive": [1]}},
        ),
        (NO_LINKS, {"GPU-a": {"active": 0, "inactive": []}}),
        ("\t Link 0: 26.562 GB/s\n", {}),
        ("", {}),
    ],
    ids=["one down", "none there", "no GPU before", "nothing"],
)
def test_links_of_other_shapes(text: str, links: dict[str, Any]) -> None:
    assert _nvidia_smi.parse_nvlinks(text) == links


def topology(description: hardware.Description, root: Path) -> dict[tuple[str, str], str]:
    write_sysfs(description, root)
    pairs = _nvidia_smi.parse_topology(ask(load_driver(root), "topo", "-m"))
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
            [["GPU0", "GPU1", "NV18"]],
        ),
        (
            "\tGPU0\tGPU1\tNIC0\nGPU0\t X \tSYS\tPIX\nGPU1\tSYS\t X \tSYS\nNIC0\tPIX\tSYS\t X \n",
            [["GPU0", "GPU1", "SYS"]],
        ),
        ((CAPTURES / "topo-h200.txt").read_text(encoding="utf-8"), []),
        ("\tGPU0\tGPU1\nGPU0\t X \n", []),
        ("", []),
    ],
    ids=["escapes", "a network card beside", "a real H200", "cut off", "nothing"],
)
def test_matrices_of_other_shapes(matrix: str, pairs: list[list[str]]) -> None:
    assert _nvidia_smi.parse_topology(matrix) == pairs


def test_two_real_h200_behind_nvswitches_are_joined_and_their_fabric_is_ready() -> None:
    """Captured on a virtual machine of an eight-GPU host, which sees no NVSwitch itself."""
    texts = {name: (CAPTURES / name).read_text(encoding="utf-8") for name in ("topo-h200-x2.txt", "nvlink-h200-x2.txt")}
    gpus = _nvidia_smi.parse((CAPTURES / "nvidia-smi-h200-x2.xml").read_text(encoding="utf-8"))["gpus"]
    assert [(gpu["product"], gpu["fabric_state"], gpu["fabric_status"]) for gpu in gpus] == 2 * [
        ("NVIDIA H200", "Completed", "Success")
    ]
    assert _nvidia_smi.parse_topology(texts["topo-h200-x2.txt"]) == [["GPU0", "GPU1", "NV18"]]
    links = _nvidia_smi.parse_nvlinks(texts["nvlink-h200-x2.txt"])
    assert links == {gpu["uuid"]: {"active": 18, "inactive": []} for gpu in gpus}
