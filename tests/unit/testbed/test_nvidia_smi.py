# SPDX-License-Identifier: Apache-2.0
"""The stand-in nvidia-smi and its neighbours, each run as a program of its own in a root made for it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from testbed import hardware
from testbed.nvidia import package

VERSION = "580.173.02"
FABRIC_MANAGER = "run/nvidia-fabricmanager/nv-fabricmanager.pid"
PERSISTENCED = "run/nvidia-persistenced/nvidia-persistenced.pid"
HOST_ENGINE = "run/nvidia-dcgm/nv-hostengine.pid"


class Host:
    """A root directory with the hardware of a description, the library installed and the module loaded."""

    def __init__(self, root: Path, description: hardware.Description | None = None) -> None:
        self.root = root
        hardware.write_host(description or hardware.load("h20_141g"), root / "etc/testbed")
        self.load(VERSION)
        self.install(VERSION)

    def load(self, version: str) -> None:
        self.write("sys/module/nvidia/version", f"{version}\n")

    def install(self, version: str) -> None:
        link = self.root / "usr/lib/x86_64-linux-gnu/nvidia/libnvidia-ml.so.1"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"libnvidia-ml.so.{version}")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    @contextmanager
    def running(self, *pid_files: str) -> Iterator[None]:
        """As if the daemons of these PID files ran."""
        opened = []
        for pid_file in pid_files:
            self.write(pid_file, "1\n")
            opened.append((self.root / pid_file).open())
            fcntl.flock(opened[-1], fcntl.LOCK_EX)
        try:
            yield
        finally:
            for file in opened:
                file.close()

    def run(
        self, *arguments: str, program: str = "smi main", version: str = VERSION, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        module, function = program.split(" ")
        code = f"import sys; sys.path.insert(0, {str(package.HERE)!r}); from files.{module} import {function}; sys.exit({function}({version!r}))"
        command = [sys.executable, "-IB", "-c", code, *arguments]
        environment = os.environ | {"TESTBED_ROOT": str(self.root)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=timeout)

    def xml(self) -> ET.Element:
        done = self.run("-q", "-x")
        assert done.returncode == 0, done.stdout
        return ET.fromstring(done.stdout)  # noqa: S314 - our own text

    def query(self, names: str) -> list[list[str]]:
        done = self.run(f"--query-gpu={names}", "--format=csv,noheader,nounits")
        assert done.returncode == 0, done.stdout
        return [line.split(", ") for line in done.stdout.splitlines()]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_a_module_there_is_no_driver_to_talk_to(host: Host) -> None:
    (host.root / "sys/module/nvidia/version").unlink()
    done = host.run()
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("-q", "-x"), ("-L",), ("--query-gpu=name", "--format=csv")])
def test_a_library_of_another_version_than_the_module_is_refused(host: Host, arguments: tuple[str, ...]) -> None:
    host.install("580.159.04")
    done = host.run(*arguments)
    assert done.returncode == 18
    assert done.stdout == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159\n"


def test_the_xml_has_the_elements_of_a_real_gpu_for_each_gpu(host: Host) -> None:
    log = host.xml()
    assert log.findtext("driver_version") == VERSION
    assert log.findtext("attached_gpus") == "8"
    assert [gpu.get("id") for gpu in log.iter("gpu")] == [
        f"0000{state.address}".upper() for state in hardware.load("h20_141g").gpus
    ]
    template = ET.parse(package.PROGRAMS / "gpu.xml").getroot()  # noqa: S314 - our own file
    real = [element.tag for element in template.iter()]
    for gpu in log.iter("gpu"):
        assert [element.tag for element in gpu.iter()] == real
    assert log.findtext("gpu/fb_memory_usage/total") == "143771 MiB"
    assert log.findtext("gpu/pci/pci_device_id") == "232C10DE"


def test_every_field_that_a_real_one_knows_is_answered_in_one_call(host: Host) -> None:
    lines = [line for line in (package.PROGRAMS / "fields.txt").read_text().splitlines() if not line.startswith("#")]
    names = [line.split(" | ")[0] for line in lines]
    rows = host.query(",".join(names))
    assert [len(row) for row in rows] == [len(names)] * 8
    header = host.run("--query-gpu=gpu_name,memory.used,clocks.gr", "--format=csv").stdout.splitlines()[0]
    assert header == "name, memory.used [MiB], clocks.current.graphics [MHz]"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("--query-gpu=index,bogus", "--format=csv"), 2, 'Field "bogus" is not a valid field to query.'),
        (("--query-gpu=index", "--format=xml"), 2, "Format modifier is not recognized."),
        (("--bogus",), 255, "Option --bogus is not recognized."),
        (("bogus",), 255, "Option bogus is not recognized."),
        (("-i", "9"), 6, "No devices were found"),
    ],
)
def test_errors_are_those_of_the_real_one(host: Host, arguments: tuple[str, ...], status: int, text: str) -> None:
    done = host.run(*arguments)
    assert (done.returncode, text in done.stdout) == (status, True)


def test_one_gpu_is_chosen_by_number_or_address_and_keeps_its_number(host: Host) -> None:
    by_number, by_address = (
        host.run("-i", name, "--query-gpu=index,uuid", "--format=csv,noheader") for name in ("2", "0000:3a:00.0")
    )
    assert by_number.stdout == by_address.stdout
    assert by_number.stdout.startswith("2, GPU-")


def test_the_fabric_is_complete_only_while_the_fabric_manager_runs(host: Host) -> None:
    assert {tuple(row) for row in host.query("fabric.state,fabric.status")} == {("In Progress", "N/A")}
    with host.running(FABRIC_MANAGER):
        assert {tuple(row) for row in host.query("fabric.state,fabric.status")} == {("Completed", "Success")}
    assert {tuple(row) for row in host.query("fabric.state")} == {("In Progress",)}


def test_a_described_fabric_fault_outlasts_the_fabric_manager(tmp_path: Path) -> None:
    stuck = replace(hardware.load("h20_141g"), fabric=hardware.Fabric("In Progress", "N/A"))
    host = Host(tmp_path, stuck)
    with host.running(FABRIC_MANAGER):
        assert host.xml().findtext("gpu/fabric/state") == "In Progress"


def test_without_nvswitches_there_is_no_fabric_and_no_link(tmp_path: Path) -> None:
    host = Host(tmp_path, hardware.load("unknown_gpu"))
    assert {tuple(row) for row in host.query("name,fabric.state")} == {("NVIDIA L40S", "N/A")}
    assert host.run("nvlink", "-s").stdout == ""
    assert "NV" not in host.run("topo", "-m").stdout.partition("Legend")[0].replace("NUMA", "")
    assert host.run(program="fabricmanager main").returncode == 1


def test_a_gpu_that_fell_off_the_bus_is_missing_and_the_rest_are_renumbered(tmp_path: Path) -> None:
    host = Host(tmp_path, hardware.load("h20_141g_7_gpus"))
    rows = host.query("index,pci.bus_id,count")
    assert [row[0] for row in rows] == [str(number) for number in range(7)]
    assert {row[2] for row in rows} == {"7"}
    assert "00000000:5D:00.0" not in {row[1] for row in rows}


@pytest.mark.parametrize(
    ("fault", "value", "arguments", "expected"),
    [
        ("pcie_width", 8, ("--query-gpu=pcie.link.width.current", "--format=csv,noheader"), "8"),
        ("ecc", False, ("--query-gpu=ecc.mode.current", "--format=csv,noheader"), "Disabled"),
        ("mig", True, ("--query-gpu=mig.mode.current", "--format=csv,noheader"), "Enabled"),
        ("row_remap_pending", True, ("--query-gpu=remapped_rows.pending", "--format=csv,noheader"), "Yes"),
        ("row_remap_failed", True, ("--query-gpu=remapped_rows.failure", "--format=csv,noheader"), "Yes"),
        (
            "uncorrectable_errors",
            3,
            ("--query-gpu=ecc.errors.uncorrected.volatile.total", "--format=csv,noheader"),
            "3",
        ),
        (
            "power_brake",
            True,
            ("--query-gpu=clocks_event_reasons.hw_power_brake_slowdown", "--format=csv,noheader"),
            "Active",
        ),
        (
            "throttle",
            "hw_thermal_slowdown",
            ("--query-gpu=clocks_event_reasons.active", "--format=csv,noheader"),
            "0x0000000000000048",
        ),
        ("clock_mhz", 1410, ("--query-gpu=clocks.sm", "--format=csv,noheader"), "1410 MHz"),
        ("memory_used_mib", 135009, ("--query-compute-apps=used_memory", "--format=csv,noheader,nounits"), "135009"),
        ("nvlinks_down", [4], ("nvlink", "-s"), "Link 4: <inactive>"),
        ("nvlinks_down", [4, 5], ("topo", "-m"), "NV16"),
        ("model", "NVIDIA H20", ("--query-gpu=name", "--format=csv,noheader"), "NVIDIA H20"),
        ("pci_id", "10de:2329", ("--query-gpu=pci.device_id", "--format=csv,noheader"), "0x232910DE"),
        ("memory_mib", 97871, ("--query-gpu=memory.total", "--format=csv,noheader,nounits"), "97871"),
        ("answers", False, ("--query-gpu=count", "--format=csv,noheader"), "7"),
    ],
)
def test_every_fault_shows(fault: str, value: Any, arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    healthy = hardware.load("h20_141g")
    broken = replace(healthy, gpus=[replace(healthy.gpus[0], **{fault: value}), *healthy.gpus[1:]])
    sound, faulty = (
        Host(tmp_path / name, one).run(*arguments).stdout for name, one in (("sound", healthy), ("faulty", broken))
    )
    pattern = rf"^{expected}$" if arguments[0].startswith("-") else re.escape(expected)
    assert re.search(pattern, faulty, re.MULTILINE)
    assert not re.search(pattern, sound, re.MULTILINE)


def test_the_table_of_faults_is_whole() -> None:
    marks = test_every_fault_shows.pytestmark
    shown = {row[0] for row in marks[0].args[1]}
    # What the driver is not asked about, and the fault that nobody gets an answer to.
    others = {"address", "numa_node", "driver", "hangs", "held_by"}
    assert {field.name for field in fields(hardware.GpuState)} == shown | others


def test_the_processes_of_the_host_that_hold_a_gpu_are_named(tmp_path: Path) -> None:
    healthy = hardware.load("h20_141g")
    held = replace(healthy.gpus[0], memory_used_mib=135009, held_by="train.py --epochs")
    host = Host(tmp_path, replace(healthy, gpus=[held, *healthy.gpus[1:]]))
    host.write("proc/4242/cmdline", "/usr/bin/python3\0train.py\0--epochs\0003\0")
    host.write("proc/4243/cmdline", "/usr/bin/python3\0serve.py\0")
    found = [(process.findtext("pid"), process.findtext("process_name")) for process in host.xml().iter("process_info")]
    assert found == [("4242", "/usr/bin/python3")]
    asked = host.run("--query-compute-apps=pid,used_memory", "--format=csv,noheader")
    assert asked.stdout == "4242, 135009 MiB\n"


def test_a_driver_that_hangs_keeps_nvidia_smi(tmp_path: Path) -> None:
    healthy = hardware.load("h20_141g")
    hanging = replace(healthy, gpus=[replace(healthy.gpus[0], hangs=True), *healthy.gpus[1:]])
    with pytest.raises(subprocess.TimeoutExpired):
        Host(tmp_path, hanging).run("-L", timeout=1.0)


def test_the_topology_is_a_full_mesh_but_for_a_described_pair(tmp_path: Path) -> None:
    description = hardware.load("h20_141g")
    one, other = (description.gpus[number].address for number in (0, 5))
    rows = [
        line.split("\t")
        for line in Host(tmp_path, replace(description, phb_pairs=[[one, other]]))
        .run("topo", "-m")
        .stdout.splitlines()[1:9]
    ]
    cells = {(row, column): rows[row][column + 1].strip() for row in range(8) for column in range(8)}
    assert {cells[pair] for pair in ((0, 5), (5, 0))} == {"PHB"}
    assert {cells[number, number] for number in range(8)} == {"X"}
    assert {cell for pair, cell in cells.items() if pair not in {(0, 5), (5, 0)} and pair[0] != pair[1]} == {"NV18"}


def test_persistence_mode_follows_the_daemon_or_the_switch(host: Host) -> None:
    assert host.query("persistence_mode")[0] == ["Disabled"]
    with host.running(PERSISTENCED):
        assert host.query("persistence_mode")[0] == ["Enabled"]
    host.run("-pm", "1")
    assert host.query("persistence_mode")[0] == ["Enabled"]


def test_the_fabric_manager_refuses_another_driver(host: Host) -> None:
    done = host.run("-c", "/dev/null", program="fabricmanager main", version="580.159.04")
    assert done.returncode == 1
    assert f"driver interface version 580.159.04 don't match with driver version {VERSION}" in done.stderr


def test_a_loaded_module_stays_until_the_next_boot(host: Host) -> None:
    host.write("usr/src/nvidia-595.71.05/nvidia.ko", "")
    host.write(f"lib/modules/{os.uname().release}/updates/dkms/nvidia.ko", "")
    host.run("boot", program="module main", version="595.71.05")
    assert (host.root / "sys/module/nvidia/version").read_text().strip() == VERSION


@pytest.mark.parametrize("blacklisted", [True, False])
def test_nouveau_keeps_the_gpus_until_it_is_blacklisted(host: Host, *, blacklisted: bool) -> None:
    (host.root / "sys/module/nvidia/version").unlink()
    (host.root / "sys/module/nvidia").rmdir()
    host.write("sys/module/nouveau/initstate", "live\n")
    host.write(f"lib/modules/{os.uname().release}/updates/dkms/nvidia.ko", "")
    if blacklisted:
        host.write("etc/modprobe.d/nvidia.conf", "blacklist nouveau\n")
    assert host.run("boot", program="module main").returncode == 0
    assert (host.root / "sys/module/nouveau").exists() is not blacklisted
    assert (host.root / "sys/module/nvidia/version").exists() is blacklisted


def test_dcgm_needs_its_engine_and_passes_a_healthy_host(host: Host) -> None:
    assert host.run("discovery", "-l", program="dcgm main").returncode != 0
    with host.running(HOST_ENGINE, PERSISTENCED):
        discovery = host.run("discovery", "-l", program="dcgm main").stdout
        assert (discovery.startswith("8 GPUs found."), "4 NvSwitches found." in discovery) == (True, True)
        done = host.run("diag", "-r", "1", "-j", program="dcgm main", version="4.5.2")
    document = json.loads(done.stdout)
    results = document["DCGM Diagnostic"]["test_categories"][0]["tests"][0]["results"]
    assert (done.returncode, {result["status"] for result in results}, len(results)) == (0, {"Pass"}, 8)
    assert document["metadata"]["Driver Version Detected"] == VERSION


def test_dcgm_fails_a_gpu_with_pending_row_remaps(tmp_path: Path) -> None:
    healthy = hardware.load("h20_141g")
    host = Host(tmp_path, replace(healthy, gpus=[replace(healthy.gpus[0], row_remap_pending=True), *healthy.gpus[1:]]))
    with host.running(HOST_ENGINE, PERSISTENCED):
        done = host.run("diag", "-r", "1", program="dcgm main")
    assert (done.returncode, "GPU0: Fail" in done.stdout, "GPU1: Pass" in done.stdout) == (226, True, True)


def test_dcgm_finds_by_a_longer_diagnosis_what_a_quick_one_does_not(tmp_path: Path) -> None:
    described = replace(hardware.load("h20_141g"), dcgm=hardware.Diagnosis(level=2, failure="memtest: 3 bits differ"))
    host = Host(tmp_path, described)
    with host.running(HOST_ENGINE, PERSISTENCED):
        quick, longer = (host.run("diag", "-r", level, "--json", program="dcgm main") for level in ("1", "2"))
    assert (quick.returncode, longer.returncode) == (0, 226)
    assert "memtest: 3 bits differ" in longer.stdout


def test_nvcc_says_its_version(host: Host) -> None:
    assert (
        "Cuda compilation tools, release 13.0, V13.0.88"
        in host.run("--version", program="nvcc main", version="13.0.88").stdout
    )
