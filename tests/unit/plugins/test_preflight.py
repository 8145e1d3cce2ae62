# SPDX-License-Identifier: Apache-2.0
"""Preflight: each finding from the smallest deviation of a fit host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter.preflight_verdict import FilterModule
from ansible_collections.h20.fleet.plugins.module_utils import _hardware, _preflight
from testbed import hardware

Facts = dict[str, Any]
Change = Callable[[Facts, Facts, Facts], object]
GIB = 1024**3
MODEL_BYTES = 700 * GIB
MODEL = "/data/models/org/name/revision"
UNIT = "vllm@deepseek.service"
PORT = {"pid": 812, "command": "nginx", "unit": "nginx.service"}


def fit() -> tuple[Facts, Facts, Facts]:
    """host, gpu and need of a host with no fault: its driver answers, its disk takes the model exactly."""
    described = hardware.load("h20_141g")
    link = {"link_width": 16, "link_width_max": 16}
    gpus = [{"address": gpu.address, "device": "232c", "numa_node": gpu.numa_node, **link} for gpu in described.gpus]
    host = {
        "os": {"id": "ubuntu", "version_id": "24.04"},
        "architecture": "x86_64",
        "kernel": "6.8.0-60-generic",
        "memory_bytes": 1024 * GIB,
        "filesystems": {
            "/data/models": {"parent": "/data", "free_bytes": round(MODEL_BYTES * 1.05), "total_bytes": 2**50}
        },
        "trees": {MODEL: {"exists": False, "bytes": 0}, f"{MODEL}.partial": {"exists": False, "bytes": 0}},
        "ports": {},
    }
    gpu = {
        "profile": "h20_141g",
        "profiles": copy.deepcopy(_hardware.PROFILES),
        "pci_gpus": gpus,
        "pci_nvswitches": [{"address": address, "device": "22a3"} for address in described.nvswitches],
        "module_version": "580.173.02",
        "smi": {"gpus": [{"address": gpu["address"], "memory_mib": 143771} for gpu in gpus]},
    }
    need = {
        "profile": "auto",
        "memory_gib": 1024,
        "model_root": "/data/models",
        "model_path": MODEL,
        "model_bytes": MODEL_BYTES,
        "ports": {8000: "deepseek"},
        "source_error": "",
    }
    return host, gpu, need


def judge(change: Change) -> tuple[list[_preflight.Finding], str]:
    """Findings and report of the fit host after a change of its facts."""
    host, gpu, need = fit()
    change(host, gpu, need)
    found = _preflight.findings(host, gpu, need)
    return found, _preflight.report("h20-01", host, gpu, found)


def lost(_host: Facts, gpu: Facts, _need: Facts) -> None:
    del gpu["smi"]["gpus"][3]


def gone(_host: Facts, gpu: Facts, _need: Facts) -> None:
    """From the bus, and so from nvidia-smi too."""
    del gpu["pci_gpus"][3], gpu["smi"]["gpus"][3]


def bare(_host: Facts, gpu: Facts, _need: Facts) -> None:
    gpu.update(profile=None, pci_gpus=[], pci_nvswitches=[], smi=None)


def stranger(_host: Facts, gpu: Facts, need: Facts) -> None:
    gpu["pci_gpus"][7]["device"] = "2329"
    gpu["profile"] = None
    need["profile"] = "h20_141g"


def unknown(_host: Facts, gpu: Facts, _need: Facts) -> None:
    for entry in gpu["pci_gpus"]:
        entry["device"] = "26b9"
    gpu["profile"] = None


DEVIATIONS: list[tuple[str, Change, str]] = [
    ("OS", lambda host, _gpu, _need: host["os"].update(version_id="20.04"), "ubuntu 20.04 is none of debian 12, "),
    ("OS", lambda host, _gpu, _need: host["os"].update(id="rocky"), "rocky 24.04"),
    ("ARCH", lambda host, _gpu, _need: host.update(architecture="aarch64"), "aarch64"),
    ("MEMORY", lambda host, _gpu, _need: host.update(memory_bytes=1023 * GIB), "1023 GiB of RAM, at least 1024 GiB"),
    ("GPU-COUNT", bare, "no NVIDIA GPU on the PCI bus"),
    ("GPU-COUNT", gone, "7 of 8 GPUs are on the PCI bus"),
    ("GPU-UNKNOWN", unknown, "8 GPUs 10de:26b9 match no profile; known: h20_141g (10de:232c), h20_96g (10de:2329)"),
    ("GPU-UNKNOWN", lambda _host, _gpu, need: need.update(profile="h100"), "match no profile"),
    ("GPU-MODEL", stranger, "profile h20_141g is 10de:232c, but 0000:db:00.0 is 10de:2329"),
    ("NVSWITCH-COUNT", lambda _host, gpu, _need: gpu["pci_nvswitches"].pop(), "3 of 4 NVSwitches"),
    ("GPU-LOST", lost, "7 of 8 GPUs answer; 0000:5d:00.0 on the PCI bus but not in nvidia-smi"),
    (
        "GPU-MEMORY",
        lambda _host, gpu, _need: gpu["smi"]["gpus"][0].update(memory_mib=143770),
        "0000:18:00.0 has 143770 MiB",
    ),
    ("DISK", lambda _host, _gpu, need: need.update(model_bytes=MODEL_BYTES + 1), "/data/models has 735.00 GiB free"),
    ("PORT", lambda host, _gpu, _need: host["ports"].update({"8000": PORT}), "held by nginx (pid 812, nginx.service)"),
    (
        "PORT",
        lambda host, _gpu, _need: host["ports"].update({"8000": {"pid": None, "command": "", "unit": ""}}),
        "port 8000 of instance deepseek is held by a hidden process (pid None, no unit)",
    ),
    (
        "PORT",
        lambda host, _gpu, _need: host["ports"].update({"8000": PORT | {"unit": "vllm@other.service"}}),
        "vllm@other.service",
    ),
    (
        "MODEL-SOURCE",
        lambda _host, _gpu, need: need.update(source_error="the hub has no revision -> correct it"),
        "the hub has no revision",
    ),
]

FIT: list[tuple[str, Change]] = [
    ("as described", lambda _host, _gpu, _need: None),
    ("profile by name", lambda _host, _gpu, need: need.update(profile="h20_141g")),
    ("no driver yet", lambda _host, gpu, _need: gpu.update(smi=None, module_version="")),
    ("memory not told", lambda _host, gpu, _need: gpu["smi"]["gpus"][0].update(memory_mib=None)),
    ("our own service", lambda host, _gpu, _need: host["ports"].update({"8000": PORT | {"unit": UNIT}})),
    ("a port nobody wants", lambda host, _gpu, _need: host["ports"].update({"9000": PORT})),
]


@pytest.mark.parametrize(("identifier", "change", "evidence"), DEVIATIONS)
def test_one_deviation_is_one_finding(identifier: str, change: Change, evidence: str) -> None:
    [found], report = judge(change)
    assert found.id == identifier
    assert evidence in found.evidence
    assert found.remedy
    first, second = report.splitlines()
    assert first.startswith("h20-01  NOT FIT  profile ")
    assert second.split() == [identifier, *found.evidence.split(), "->", *found.remedy.split()]


@pytest.mark.parametrize("change", [change for _name, change in FIT], ids=[name for name, _change in FIT])
def test_a_fit_host_has_no_finding_and_one_line(change: Change) -> None:
    found, report = judge(change)
    assert found == []
    driver = "no driver yet" if "no driver" in report else "driver 580.173.02"
    assert report == (
        "h20-01  fit  8 x NVIDIA H20-3e, 4 NVSwitches, 1024 GiB RAM, ubuntu 24.04, kernel 6.8.0-60-generic, " + driver
    )


def test_all_findings_come_at_once_in_the_order_an_operator_would_mend_them() -> None:
    def everything(host: Facts, gpu: Facts, need: Facts) -> None:
        for identifier, change, _evidence in DEVIATIONS:
            if identifier not in {
                "GPU-COUNT",
                "GPU-UNKNOWN",
            }:  # these end the judgement of the GPUs, or take a GPU that others change
                change(host, gpu, need)
        del gpu["pci_gpus"][0]

    found, report = judge(everything)
    system, buses = ["OS", "ARCH", "MEMORY"], ["GPU-MODEL", "GPU-COUNT", "NVSWITCH-COUNT", "GPU-LOST", "GPU-MEMORY"]
    assert [finding.id for finding in found] == [*system, *buses, "DISK", "PORT", "MODEL-SOURCE"]
    assert len({line.index("  -> ") for line in report.splitlines()[1:]}) == 1


@pytest.mark.parametrize("partial", [0, 1, MODEL_BYTES // 2, MODEL_BYTES, 2 * MODEL_BYTES])
def test_what_was_fetched_already_needs_no_room(partial: int) -> None:
    def fetched(free: int) -> Change:
        def change(host: Facts, _gpu: Facts, _need: Facts) -> None:
            host["trees"][f"{MODEL}.partial"].update(exists=True, bytes=partial)
            host["filesystems"]["/data/models"]["free_bytes"] = free

        return change

    missing = max(0, MODEL_BYTES - partial) * 1.05
    assert judge(fetched(int(missing) + 1))[0] == []
    if missing:
        assert [finding.id for finding in judge(fetched(int(missing) - 1))[0]] == ["DISK"]


def test_a_model_that_is_there_needs_no_room() -> None:
    def change(host: Facts, _gpu: Facts, _need: Facts) -> None:
        host["trees"][MODEL]["exists"] = True
        host["filesystems"]["/data/models"]["free_bytes"] = 0

    assert judge(change)[0] == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [("gone -> call them", "call them"), ("gone", "correct the release, or set fleet_hub_endpoint")],
)
def test_the_remedy_of_the_source_is_its_own_or_a_general_one(error: str, remedy: str) -> None:
    [found], _report = judge(lambda _host, _gpu, need: need.update(source_error=error))
    assert (found.evidence, found.remedy) == ("gone", remedy)


def test_the_filter_gives_findings_as_data_beside_the_report() -> None:
    verdict = FilterModule().filters()["preflight_verdict"]
    host, gpu, need = fit()
    assert verdict(host, gpu, need, "h20-01")["findings"] == []
    host["architecture"] = "aarch64"
    result = verdict(host, gpu, need, "h20-01")
    assert [(finding["id"], set(finding)) for finding in result["findings"]] == [("ARCH", {"id", "evidence", "remedy"})]
    assert result["report"].startswith("h20-01  NOT FIT  profile h20_141g\n  ARCH  ")
