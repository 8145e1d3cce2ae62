# SPDX-License-Identifier: Apache-2.0
"""What preflight says of hardware that is not as it should be: the cases are dealt out to the eight hosts, one run a batch."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import REPORTS, Run, describe, play, shell

HOSTS = [f"h20-{number}" for number in range(21, 29)]
GPU, OTHER = "0000:18:00.0", "0000:2a:00.0"
GPUS = [GPU, OTHER, *(f"0000:{bus}:00.0" for bus in ("3a", "5d", "9a", "ab", "ba", "db"))]
XID = "NVRM: Xid (PCI:0000:18:00): {}, pid='<unknown>', name=<unknown>, {}"
REFUSE, WARN, UNKNOWN = "refuse", "warn", "unknown"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is wrong with a host (as a description of the test bed says it, or as a script brings it about), and all that preflight finds."""

    faults: dict[str, t.Any] | str
    findings: dict[str, str]
    remedy: str = ""
    prepare: str = ""
    mend: str = ""

    @property
    def verdict(self) -> str:
        severities = self.findings.values()
        return "not_fit" if REFUSE in severities else "unknown" if UNKNOWN in severities else "fit"


def one_gpu(**state: t.Any) -> dict[str, t.Any]:
    return {"gpus": {GPU: state}}


CASES = {
    "0 GPUs": Case(
        {"gpus": dict.fromkeys(GPUS)},
        {"GPU-COUNT": REFUSE, "NVIDIA-SMI": UNKNOWN},
        "power-cycle the host; check BIOS and risers",
    ),
    "7 GPUs on the bus": Case({"gpus": {GPU: None}}, {"GPU-COUNT": REFUSE}, "power-cycle the host"),
    "7 GPUs that answer": Case(one_gpu(answers=False), {"GPU-LOST": REFUSE}, "look for an Xid in the kernel log"),
    "9 GPUs": Case({"gpus": {"0000:dc:00.0": {"numa_node": 1}}}, {"GPU-COUNT": REFUSE}, "power-cycle the host"),
    "a model that no profile knows": Case(
        "unknown_gpu", {"GPU-UNKNOWN": REFUSE}, "vouch for its hardware in fleet_hardware_profiles"
    ),
    "mixed models": Case(
        one_gpu(model="NVIDIA H20", pci_id="10de:2329", memory_mib=97871),
        {"GPU-MODEL": REFUSE, "GPU-MEMORY": REFUSE},
        "replace the GPUs, or name the profile they have",
    ),
    "less memory than the model has": Case(one_gpu(memory_mib=131072), {"GPU-MEMORY": REFUSE}, "have the GPU replaced"),
    "MIG on": Case(one_gpu(mig=True), {"GPU-MIG": REFUSE}, "nvidia-smi -mig 0"),
    "ECC off": Case(one_gpu(ecc=False), {"GPU-ECC": REFUSE}, "nvidia-smi -e 1, then reboot"),
    "row remap pending": Case(
        one_gpu(row_remap_pending=True), {"GPU-ROW-REMAP": REFUSE, "GPU-RECOVERY": REFUSE}, "reboot the host"
    ),
    "row remap failed": Case(one_gpu(row_remap_failed=True), {"GPU-ROW-REMAP": REFUSE}, "have the GPU replaced"),
    "uncorrectable errors": Case(one_gpu(uncorrectable_errors=2), {"GPU-UNCORRECTABLE": REFUSE}, "dcgmi diag -r 3"),
    "PCIe width 8": Case(one_gpu(pcie_width=8), {"PCIE-WIDTH": REFUSE}, "have the riser or the GPU reseated"),
    "NVLink down": Case(one_gpu(nvlinks_down=[4, 5]), {"NVLINK": REFUSE}, "power-cycle the host"),
    "fabric in progress": Case(
        {"fabric": {"state": "In Progress", "status": "N/A"}},
        {"FABRIC": REFUSE},
        "systemctl restart nvidia-fabricmanager",
    ),
    "fabric failed": Case(
        {"fabric": {"state": "Completed", "status": "Insufficient Resources"}},
        {"FABRIC": REFUSE},
        "read the journal of nvidia-fabricmanager and power-cycle the host",
    ),
    "fabric failed without a reason": Case(
        {"fabric": {"state": "Completed", "status": "Unknown Error"}},
        {"FABRIC": REFUSE},
        "read the journal of nvidia-fabricmanager and power-cycle the host",
    ),
    "fatal Xid": Case(
        {"kernel_log": [XID.format(79, "GPU has fallen off the bus.")]}, {"GPU-XID": REFUSE}, "power-cycle the host"
    ),
    "fatal SXid": Case(
        {"kernel_log": ["nvidia-nvswitch2: SXid (PCI:0000:09:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"]},
        {"GPU-XID": REFUSE},
        "reboot the host",
    ),
    "Xid of a program": Case(
        {"kernel_log": [XID.format(31, "Ch 00000008, intr 00000000. MMU Fault")]}, {"GPU-XID": WARN}, "restart what ran"
    ),
    "GPU passed through": Case(one_gpu(driver="vfio-pci"), {"GPU-LOST": REFUSE}, "take the GPUs back"),
    "memory held": Case(
        one_gpu(memory_used_mib=40000), {"GPU-BUSY": WARN}, "stop what holds it before an instance starts"
    ),
    "nouveau loaded": Case({"nouveau_loaded": True}, {"NOUVEAU": WARN}, "the driver stage turns it off"),
    "Secure Boot on, module signed": Case({"secure_boot": True}, {}),
    "headers missing": Case(
        {},
        {"KERNEL-HEADERS": WARN},
        "the driver stage installs them",
        prepare="mv /lib/modules/$(uname -r)/build /root/build",
        mend="mv /root/build /lib/modules/$(uname -r)/build",
    ),
    "driver too old": Case(
        {},
        {"DRIVER-OLD": WARN, "DRIVER-MIXED": WARN, "FM-VERSION": WARN},
        "the driver stage installs 580.173.02",
        prepare="echo 570.86.15 > /sys/module/nvidia/version",
        mend="echo 580.173.02 > /sys/module/nvidia/version",
    ),
    "nvidia-smi hangs": Case(one_gpu(hangs=True), {"NVIDIA-SMI": UNKNOWN}, "power-cycle the host and judge it again"),
    "several at once": Case(
        {"gpus": {GPU: {"mig": True}, OTHER: {"ecc": False}}, "nouveau_loaded": True},
        {"GPU-MIG": REFUSE, "GPU-ECC": REFUSE, "NOUVEAU": WARN},
    ),
}


def break_host(host: str, case: Case) -> None:
    if isinstance(case.faults, str):
        describe(host, case.faults, "hardware")
    else:
        describe(host, {"base": "h20_141g", "faults": case.faults}, "hardware")
    if case.prepare:
        shell(host, case.prepare)


def mend_host(host: str, case: Case) -> None:
    describe(host, "h20_141g", "hardware")
    if case.mend:
        shell(host, case.mend)


def preflight(hosts: t.Iterable[str]) -> tuple[Run, dict[str, dict[str, t.Any]]]:
    """One run on these hosts, and the report of each."""
    names = list(hosts)
    for name in names:
        (REPORTS / f"{name}.json").unlink(missing_ok=True)
    run = play("preflight", "--limit", ",".join(names), "--extra-vars", '{"fleet_hosts": "hardware"}')
    return run, {name: json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8")) for name in names}


@pytest.fixture(scope="module")
def judged() -> dict[str, tuple[Run, dict[str, t.Any], int]]:
    """The run, the report and the status that the batch has to end with, of each case."""
    found: dict[str, tuple[Run, dict[str, t.Any], int]] = {}
    cases = list(CASES.items())
    for first in range(0, len(cases), len(HOSTS)):
        dealt = dict(zip(HOSTS, cases[first:], strict=False))
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda item: break_host(item[0], item[1][1]), dealt.items()))
            run, reports = preflight(dealt)
            list(pool.map(lambda item: mend_host(item[0], item[1][1]), dealt.items()))
        verdicts = {case.verdict for _name, case in dealt.values()}
        status = 4 if "unknown" in verdicts else 2 if "not_fit" in verdicts else 0
        found |= {name: (run, reports[host], status) for host, (name, _case) in dealt.items()}
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_fault_is_found_with_its_remedy_and_nothing_else(
    name: str, judged: dict[str, tuple[Run, dict[str, t.Any], int]]
) -> None:
    case, (run, report, status) = CASES[name], judged[name]
    assert {finding["id"]: finding["severity"] for finding in report["findings"]} == case.findings, run.output
    assert any(case.remedy in finding["remedy"] for finding in report["findings"]) or not case.remedy, report
    assert report["verdict"] == case.verdict
    assert run.rc == status, run.output
    for finding in report["findings"]:
        assert finding["id"] in run.words
        assert finding["remedy"] in run.words


def test_healthy_hosts_are_fit() -> None:
    run, reports = preflight(HOSTS)
    assert run.rc == 0, run.output
    assert {name: (report["verdict"], report["findings"]) for name, report in reports.items()} == dict.fromkeys(
        HOSTS, ("fit", [])
    )
