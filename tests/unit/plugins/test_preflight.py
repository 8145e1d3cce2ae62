# SPDX-License-Identifier: Apache-2.0
"""Preflight: each finding from the smallest deviation of a fit host, and the nearest thing to it that is none."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _preflight, _profiles, _serving_profiles
from unit.plugins.fit_host import (
    ADDRESSES,
    DEEPSEEK,
    DRIVER,
    GIB,
    MODEL,
    MODEL_BYTES,
    NGINX,
    OLDER,
    VLLM,
    XID,
    Facts,
    changed,
    package,
    process,
)

REFUSE, WARN, UNKNOWN = _preflight.REFUSE, _preflight.WARN, _preflight.UNKNOWN
SITE = _profiles.PROFILES["h20_141g"] | {"product": "NVIDIA L40S", "pci_device": "26b9", "source": "our own tests"}


def judge(changes: Facts) -> list[_preflight.Finding]:
    facts = changed(changes)
    return _preflight.findings(**facts)


def report(changes: Facts) -> list[str]:
    facts = changed(changes)
    found, planned = _preflight.findings(**facts), _preflight.plans(facts["gpu"], facts["model"], facts["need"])
    return _preflight.report("h20-01", facts["host"], facts["gpu"], found, facts["need"], planned).splitlines()


def count(number: int) -> Facts:
    return {f"gpu.pci_gpus:{number}": None, f"gpu.smi.gpus:{number}": None}


def version(driver: str) -> Facts:
    """Another whole driver, fabric manager included."""
    return {
        "gpu.module.loaded_version": driver,
        "gpu.module.installed_version": driver,
        "gpu.userspace_version": driver,
        "gpu.fabric_manager.version": driver,
        "gpu.smi.driver_version": driver,
    }


#: A host that was never touched: GPUs on the bus, no driver.
BARE: Facts = version("") | {
    "gpu.fabric_manager.active": False,
    "gpu.packages": [],
    "gpu.smi": None,
    "gpu.smi_error": "nvidia-smi is not installed",
    "gpu.pci_gpus.*.driver": None,
}
FOREIGN: dict[str, Facts] = {
    "run": {"gpu.runfile": True},
    "ubuntu": {"gpu.packages": [package("libnvidia-compute-580-server", f"{DRIVER}-0ubuntu0.24.04.1", "ubuntu")]},
    "debian": {"gpu.packages": [package("nvidia-driver", "535.261.03-1~deb12u1", "debian")]},
    "closed": {"gpu.packages": [package("nvidia-dkms-580", f"{DRIVER}-1ubuntu1", "nvidia")]},
}
CONSENT = {"need.driver_replace": True}
MIXED = version("") | {
    "gpu.module.loaded_version": OLDER,
    "gpu.module.installed_version": DRIVER,
    "gpu.userspace_version": DRIVER,
    "gpu.fabric_manager.version": OLDER,
    "gpu.smi": None,
    "gpu.smi_error": "Failed to initialize NVML: Driver/library version mismatch",
}
SECURE = {"gpu.kernel.secure_boot": True}
UNKNOWN_GPUS = {"gpu.profile": None, "gpu.pci_gpus.*.device": "26b9"}
SMALL_GPUS = {
    "gpu.profile": "h20_96g",
    "gpu.pci_gpus.*.device": "2329",
    "gpu.smi.gpus.*.memory_mib": 97871,
}


class Case(NamedTuple):
    """A deviation with the finding that it makes, or with none (severity None) where the identifier must not be found."""

    id: str
    severity: str | None
    changes: Facts
    evidence: str = ""
    beside: tuple[str, ...] = ()


PORT = {"address": "0000:19:00.0", "redirects": ["ReqRedir", "CmpltRedir"]}
CASES = [
    Case(
        "OS", REFUSE, {"host.os.version_id": "20.04"}, "ubuntu 20.04 is none of debian 12, ubuntu 22.04, ubuntu 24.04"
    ),
    Case("OS", REFUSE, {"host.os.id": "rocky"}, "rocky 24.04"),
    Case("OS", None, {"host.os.version_id": "22.04"}),
    Case("ARCH", REFUSE, {"host.architecture": "aarch64"}, "aarch64"),
    Case("ARCH", None, {}),
    Case("MEMORY", REFUSE, {"host.memory_bytes": 1023 * GIB}, "1023 GiB of RAM, at least 1024 GiB wanted"),
    Case("MEMORY", None, {"host.memory_bytes": 1025 * GIB}),
    Case("GPU-COUNT", REFUSE, BARE | {"gpu.profile": None, "gpu.pci_gpus": []}, "no NVIDIA GPU on the PCI bus"),
    Case("GPU-COUNT", REFUSE, count(7), "7 of 8 GPUs are on the PCI bus"),
    Case("GPU-COUNT", REFUSE, count(9), "9 of 8 GPUs are on the PCI bus"),
    Case("GPU-COUNT", None, {"gpu.smi.gpus:7": None}, beside=("GPU-LOST",)),
    Case("NVSWITCH-COUNT", REFUSE, {"gpu.pci_nvswitches:3": None}, "3 of 4 NVSwitches"),
    # A capture of nvidia-smi alone has no bus.
    Case("NVSWITCH-COUNT", None, {"gpu.pci_nvswitches": [], "gpu.kernel.release": ""}),
    Case(
        "GPU-UNKNOWN",
        REFUSE,
        UNKNOWN_GPUS,
        "8 GPUs 10de:26b9 match no profile; known: h20_141g (10de:232c), h20_96g (10de:2329)",
    ),
    Case("GPU-UNKNOWN", REFUSE, {"need.profile": "b300"}, "match no profile"),
    Case("GPU-UNKNOWN", None, UNKNOWN_GPUS | {"gpu.profile": "ours", "gpu.profiles": {"ours": SITE}}),
    Case("GPU-UNKNOWN", None, UNKNOWN_GPUS | {"need.profile": "ours", "gpu.profiles": {"ours": SITE}}),
    Case(
        "GPU-MODEL",
        REFUSE,
        SMALL_GPUS | {"need.profile": "h20_141g"},
        "profile h20_141g is 10de:232c, but 0000:18:00.0 is 10de:2329",
        ("GPU-MEMORY",),
    ),
    Case("GPU-MODEL", REFUSE, {"gpu.profile": None, "gpu.pci_gpus.7.device": "2335"}, "but 0000:db:00.0 is 10de:2335"),
    Case("GPU-MODEL", None, {"need.profile": "h20_141g"}),
    Case("PCIE-WIDTH", REFUSE, {"gpu.pci_gpus.2.link_width": 8}, "0000:3a:00.0 x8"),
    Case("PCIE-WIDTH", None, {"gpu.pci_gpus.2.link_width": None}),
    Case("PCIE-WIDTH", None, {"gpu.pci_gpus.2.link_width": 0}),
    Case(
        "DPKG-LOCKED",
        WARN,
        {"gpu.dpkg": {"interrupted": ["libc6"], "lock_holder": {"pid": 7, "command": "apt-get"}}},
        "apt-get (pid 7)",
    ),
    Case("DPKG-LOCKED", None, {}),
    Case(
        "DPKG-INTERRUPTED",
        REFUSE,
        {"gpu.dpkg.interrupted": ["nvidia-open", "(updates pending)"]},
        "nvidia-open, (updates pending)",
    ),
    # While dpkg runs, what is half installed is its work.
    Case(
        "DPKG-INTERRUPTED",
        None,
        {"gpu.dpkg": {"interrupted": ["a"], "lock_holder": {"pid": 7, "command": "apt"}}},
        beside=("DPKG-LOCKED",),
    ),
    Case("DRIVER-FOREIGN", REFUSE, FOREIGN["run"], ".run installer"),
    Case("DRIVER-FOREIGN", WARN, FOREIGN["run"] | CONSENT, ".run installer"),
    Case(
        "DRIVER-FOREIGN", REFUSE, FOREIGN["ubuntu"], "libnvidia-compute-580-server 580.173.02-0ubuntu0.24.04.1 (ubuntu)"
    ),
    Case("DRIVER-FOREIGN", WARN, FOREIGN["ubuntu"] | CONSENT, "(ubuntu)"),
    Case("DRIVER-FOREIGN", REFUSE, FOREIGN["debian"], "nvidia-driver 535.261.03-1~deb12u1 (debian)"),
    Case("DRIVER-FOREIGN", WARN, FOREIGN["debian"] | CONSENT, "(debian)"),
    Case("DRIVER-FOREIGN", REFUSE, FOREIGN["closed"], "nvidia-dkms-580 580.173.02-1ubuntu1 (closed modules)"),
    Case("DRIVER-FOREIGN", None, {"gpu.packages": [package("nvidia-prime", "0.8.17.2", "ubuntu")]}),
    Case("SECURE-BOOT", REFUSE, BARE | SECURE, "Secure Boot is on"),
    Case("SECURE-BOOT", REFUSE, FOREIGN["ubuntu"] | CONSENT | SECURE, "Secure Boot is on", ("DRIVER-FOREIGN",)),
    Case("SECURE-BOOT", None, BARE | SECURE | {"need.secure_boot_enrolled": True}),
    Case("SECURE-BOOT", None, SECURE),
    Case("SECURE-BOOT", None, BARE | {"gpu.kernel.secure_boot": None}),
    Case("NOUVEAU", WARN, BARE | {"gpu.module.nouveau": True}, "nouveau is loaded"),
    Case("NOUVEAU", WARN, BARE | {"gpu.pci_gpus.0.driver": "nouveau"}, "nouveau is loaded"),
    Case("NOUVEAU", None, BARE),
    Case("KERNEL-HEADERS", WARN, {"gpu.kernel.headers": False}, "headers of the running kernel 6.8.0-60-generic"),
    Case("KERNEL-HEADERS", None, BARE | {"gpu.kernel.headers": False}),
    Case("DRIVER-OLD", WARN, version("570.172.08"), "driver 570.172.08; the release's CUDA needs 580.65.06"),
    Case("DRIVER-OLD", REFUSE, version("570.172.08") | FOREIGN["run"], "driver 570.172.08", ("DRIVER-FOREIGN",)),
    Case("DRIVER-OLD", None, version("580.65.06")),
    Case("DRIVER-OLD", None, version("1000.1.1")),
    Case("DRIVER-OLD", None, BARE),
    Case(
        "DRIVER-MIXED", WARN, MIXED, f"the loaded module is {OLDER}, but userspace {DRIVER} and module on disk {DRIVER}"
    ),
    Case("DRIVER-MIXED", WARN, {"gpu.module.installed_version": OLDER}, f"but module on disk {OLDER}"),
    Case("DRIVER-MIXED", None, version(OLDER)),
    Case("DRIVER-MIXED", None, version(DRIVER) | {"gpu.module.loaded_version": "", "gpu.smi": None}),
    Case(
        "FM-VERSION",
        REFUSE,
        {"gpu.fabric_manager.version": "580.173.01"},
        "fabric manager 580.173.01, driver 580.173.02",
    ),
    Case("FM-VERSION", REFUSE, {"gpu.fabric_manager.version": ""}, "fabric manager is not installed"),
    Case(
        "FM-VERSION",
        WARN,
        version(OLDER) | {"gpu.fabric_manager.version": "580.159.03"},
        f"fabric manager 580.159.03, driver {OLDER}",
    ),
    Case("FM-VERSION", None, {"gpu.fabric_manager.version": f"{DRIVER}-1ubuntu1"}),
    Case("FM-VERSION", None, version(OLDER)),
    Case(
        "NVIDIA-SMI",
        UNKNOWN,
        {"gpu.smi": None, "gpu.smi_error": "nvidia-smi did not answer within 60 s"},
        "did not answer within 60 s",
    ),
    Case("NVIDIA-SMI", None, MIXED, beside=("DRIVER-MIXED",)),
    Case("NVIDIA-SMI", None, BARE),
    Case("NVIDIA-SMI", None, {"gpu.smi": None, "gpu.userspace_version": ""}),
    Case(
        "GPU-LOST",
        REFUSE,
        {"gpu.smi.gpus:7": None},
        "7 of 8 GPUs answer; 0000:db:00.0 on the PCI bus but not in nvidia-smi",
    ),
    Case("GPU-LOST", REFUSE, BARE | {"gpu.pci_gpus.1.driver": "vfio-pci"}, "0000:2a:00.0 (vfio-pci)"),
    Case("GPU-LOST", REFUSE, {"gpu.pci_gpus.7.driver": "vfio-pci", "gpu.smi.gpus:7": None}, "0000:db:00.0 (vfio-pci)"),
    Case("GPU-LOST", None, count(7), beside=("GPU-COUNT",)),
    Case(
        "GPU-XID",
        REFUSE,
        {"gpu.xids": [XID, XID]},
        "Xid 79 (GPU has fallen off the bus) on 0000:5d:00.0, 2 times, last 2026-11-23T03:12:00Z",
    ),
    Case("GPU-XID", WARN, {"gpu.xids": [XID | {"code": 31, "fatal": False}]}, "Xid 31 "),
    Case("GPU-XID", REFUSE, {"gpu.xids": [XID | {"kind": "sxid", "code": 20034}]}, "SXid 20034 "),
    Case("GPU-XID", None, {}),
    Case(
        "GPU-MEMORY",
        REFUSE,
        {"gpu.profile": None, "gpu.smi.gpus.0.memory_mib": 97871},
        "0000:18:00.0 has 97871 MiB, the profile h20_141g says 143771",
    ),
    Case("GPU-MEMORY", UNKNOWN, {"gpu.smi.gpus.0.memory_mib": None}, "does not tell the memory of 0000:18:00.0"),
    Case("GPU-MEMORY", None, {"gpu.smi.gpus.0.memory_mib": 143770}),
    Case("GPU-MIG", REFUSE, {"gpu.smi.gpus.3.mig": "Enabled"}, "MIG is on: 0000:5d:00.0"),
    Case("GPU-MIG", None, {"gpu.smi.gpus.3.mig": None}),
    Case(
        "GPU-ECC",
        REFUSE,
        {"gpu.smi.gpus.*.ecc": "Disabled"},
        "0000:18:00.0, 0000:2a:00.0, 0000:3a:00.0, 0000:5d:00.0 and 4 more",
    ),
    Case("GPU-ECC", REFUSE, {"gpu.smi.gpus.0.ecc_pending": "Disabled"}, "after the next reboot: 0000:18:00.0"),
    Case("GPU-ECC", UNKNOWN, {"gpu.smi.gpus.0.ecc": None}, "does not tell the ECC mode of 0000:18:00.0"),
    Case("GPU-ECC", None, {"gpu.smi.gpus.0.ecc_pending": None}),
    Case("GPU-ROW-REMAP", REFUSE, {"gpu.smi.gpus.0.row_remap_pending": "Yes"}, "waits to be remapped: 0000:18:00.0"),
    Case("GPU-ROW-REMAP", REFUSE, {"gpu.smi.gpus.0.row_remap_failure": "Yes"}, "could not be remapped: 0000:18:00.0"),
    Case("GPU-ROW-REMAP", None, {"gpu.smi.gpus.0.row_remap_pending": None, "gpu.smi.gpus.0.row_remap_failure": None}),
    Case("GPU-UNCORRECTABLE", REFUSE, {"gpu.smi.gpus.0.ecc_uncorrectable": 3}, "0000:18:00.0 3"),
    Case(
        "GPU-UNCORRECTABLE",
        None,
        {"gpu.smi.gpus.0.ecc_uncorrectable": None, "gpu.smi.gpus.1.ecc_uncorrectable_aggregate": 3},
    ),
    Case("GPU-RECOVERY", REFUSE, {"gpu.smi.gpus.0.recovery_action": "Reset"}, "0000:18:00.0 Reset"),
    Case("GPU-RECOVERY", None, {"gpu.smi.gpus.0.recovery_action": "None"}),
    Case(
        "NVLINK",
        REFUSE,
        {"gpu.smi.gpus.0.nvlinks": {"active": 16, "inactive": [4, 5]}},
        "18 NVLinks are active: 0000:18:00.0 16 (down: 4, 5)",
    ),
    Case("NVLINK", WARN, version(OLDER) | {"gpu.smi.gpus.0.nvlinks": {"active": 0, "inactive": []}}, "0000:18:00.0 0"),
    Case("NVLINK", None, {"gpu.smi.gpus.*.nvlinks": None}),
    Case("FABRIC", REFUSE, {"gpu.smi.gpus.*.fabric_state": "In Progress"}, "is not complete: 0000:18:00.0"),
    Case(
        "FABRIC",
        REFUSE,
        {"gpu.smi.gpus.0.fabric_state": "In Progress", "gpu.fabric_manager.active": False},
        "nvidia-fabricmanager is not running",
    ),
    Case("FABRIC", WARN, version(OLDER) | {"gpu.smi.gpus.0.fabric_state": "In Progress"}, "is not complete"),
    Case(
        "FABRIC",
        REFUSE,
        {"gpu.smi.gpus.0.fabric_status": "Insufficient Resources"},
        "failed: 0000:18:00.0 Insufficient Resources",
    ),
    Case("FABRIC", None, {"gpu.smi.gpus.*.fabric_state": None, "gpu.smi.gpus.*.fabric_status": None}),
    Case(
        "PCIE-ACS", WARN, {"need.nodes": "multi", "gpu.pcie.redirecting": [PORT]}, "0000:19:00.0 (ReqRedir, CmpltRedir)"
    ),
    Case("PCIE-ACS", None, {"gpu.pcie.redirecting": [PORT]}),
    Case("PCIE-IOMMU", WARN, {"need.nodes": "multi", "gpu.pcie.translated": ADDRESSES}, f"{ADDRESSES[3]} and 4 more"),
    Case("PCIE-IOMMU", None, {"gpu.pcie.translated": ADDRESSES}),
    Case(
        "MODEL-SOURCE",
        REFUSE,
        {"model.error": "the hub does not answer -> wait", "model.config": None},
        "the hub does not answer",
    ),
    Case(
        "MODEL-SOURCE",
        None,
        {"model.error": "the hub does not answer -> wait", "model.present": True, "model.config": None},
    ),
    Case("MODEL-FIT", REFUSE, SMALL_GPUS, "instance deepseek: TP8: "),
    Case(
        "MODEL-FIT",
        REFUSE,
        {"need.instances.0.profile": "fastest"},
        "names profile fastest; known are latency, throughput, ",
    ),
    Case(
        "MODEL-FIT",
        REFUSE,
        {"need.instances.0.arguments": {"max_num_seqs": 8}},
        "deepseek: vLLM argument max_num_seqs",
    ),
    Case("MODEL-FIT", REFUSE, {"need.instances.0.gpus": [6, 7, 8]}, "names GPU 8 of a host that has 8"),
    Case("MODEL-FIT", None, {"need.instances.0.gpus": [0, 7]}),
    Case("MODEL-FIT", WARN, {"need.instances.0.model": "/data/models/ours"}, "its config.json is not known"),
    Case("MODEL-FIT", WARN, {"model.config": {"architectures": ["Unheard"]}}, "instance deepseek: "),
    Case(
        "MODEL-FIT",
        None,
        SMALL_GPUS | {"need.instances.0.arguments": {"max-model-len": 8192, "gpu-memory-utilization": 0.95}},
    ),
    Case("MODEL-FIT", None, {"model.config": None}),
    Case(
        "DISK",
        REFUSE,
        {"need.model_bytes": MODEL_BYTES + 1},
        "/data/models has 735.00 GiB free, the model needs 735.00 GiB with 5% to spare",
    ),
    Case("DISK", None, {}),
    Case(
        "PORT",
        REFUSE,
        {"host.ports": {"8000": NGINX}},
        "port 8000 of instance deepseek is held by nginx (pid 812, nginx.service)",
    ),
    Case(
        "PORT",
        REFUSE,
        {"host.ports": {"8000": {"pid": None, "command": "", "unit": ""}}},
        "held by a hidden process (pid None, no unit)",
    ),
    Case("PORT", REFUSE, {"host.ports": {"8000": VLLM | {"unit": "vllm@other.service"}}}, "vllm@other.service"),
    Case("PORT", None, {"host.ports": {"8000": VLLM, "9000": NGINX}}),
    Case(
        "GPU-BUSY",
        WARN,
        {"gpu.smi.gpus.0.processes": [process("/usr/bin/python3")]},
        "0000:18:00.0 by /usr/bin/python3 (pid 4711)",
    ),
    Case(
        "GPU-BUSY",
        WARN,
        {"gpu.smi.gpus.0.memory_used_mib": 135_009},
        "0000:18:00.0 135009 MiB by nothing that can be seen",
    ),
    Case("GPU-BUSY", None, {"gpu.smi.gpus.0.memory_used_mib": 135_009, "host.ports": {"8000": VLLM}}),
    Case(
        "GPU-BUSY",
        None,
        {"gpu.smi.gpus.0.memory_used_mib": 135_009, "gpu.smi.gpus.0.processes": [process("VLLM::Worker_TP0")]},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id}-{case.severity or 'none'}")
def test_a_deviation_is_its_finding_and_nothing_else_is(case: Case) -> None:
    found = judge(case.changes)
    wanted = {case.id, *case.beside} if case.severity else set(case.beside)
    assert {finding.id for finding in found} == wanted
    for finding in found:
        assert finding.evidence
        assert finding.remedy
        if finding.id == case.id:
            assert finding.severity == case.severity
            assert case.evidence in finding.evidence


def test_the_table_has_every_identifier_with_and_without_its_finding() -> None:
    tree = ast.parse(Path(_preflight.__file__).read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding"
    ]
    identifiers = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert len(identifiers) > 25
    assert {case.id for case in CASES if case.severity} == identifiers
    assert {case.id for case in CASES if not case.severity} == identifiers
    document = (Path(__file__).resolve().parents[3] / "docs/hardware.md").read_text(encoding="utf-8")
    _before, _heading, section = document.partition("## Findings")
    rows = [line.split("|")[1] for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([A-Z][A-Z-]+)`", row)} == identifiers


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, _preflight.FIT),
        ({"gpu.kernel.headers": False}, _preflight.FIT),
        ({"gpu.smi.gpus.0.ecc": None, "gpu.kernel.headers": False}, _preflight.COULD_NOT_TELL),
        ({"gpu.smi.gpus.0.ecc": None, "gpu.smi.gpus.1.mig": "Enabled"}, _preflight.NOT_FIT),
    ],
)
def test_what_refuses_outweighs_what_could_not_be_told_and_a_warning_weighs_nothing(
    changes: Facts, verdict: str
) -> None:
    assert _preflight.verdict(judge(changes)) == verdict


def test_the_plan_that_does_not_fit_names_the_longest_that_does() -> None:
    [finding] = judge(SMALL_GPUS)
    length = int("".join(filter(str.isdigit, finding.remedy)))
    shorter = SMALL_GPUS | {"need.instances.0.arguments": {"max-model-len": length}}
    assert 0 < length < _serving_profiles.PROFILES["latency"].arguments["max-model-len"].value
    assert judge(shorter) == []


def test_the_profile_for_trying_without_gpus_is_not_refused() -> None:
    tiny = DEEPSEEK | {
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "n_routed_experts": 4,
        "num_nextn_predict_layers": 0,
        "vocab_size": 512,
    }
    assert judge({"need.instances.0.profile": "cpu_test", "model.config": tiny}) == []


def test_findings_come_in_the_order_an_operator_would_mend_them() -> None:
    everything = {
        "host.os.id": "rocky",
        "gpu.pci_gpus.0.link_width": 8,
        "gpu.dpkg.interrupted": ["a"],
        "gpu.runfile": True,
        "gpu.fabric_manager.version": "",
        "gpu.smi.gpus.1.ecc": "Disabled",
        "gpu.smi.gpus.*.fabric_state": "In Progress",
        "model.error": "gone",
        "need.model_bytes": MODEL_BYTES * 2,
        "host.ports": {"8000": NGINX},
    }
    assert [finding.id for finding in judge(everything)] == [
        *("OS", "PCIE-WIDTH", "DPKG-INTERRUPTED", "DRIVER-FOREIGN", "FM-VERSION", "GPU-ECC", "FABRIC"),
        *("MODEL-SOURCE", "DISK", "PORT"),
    ]


@pytest.mark.parametrize("partial", [0, 1, MODEL_BYTES // 2, MODEL_BYTES, 2 * MODEL_BYTES])
def test_what_was_fetched_already_needs_no_room(partial: int) -> None:
    missing = max(0, MODEL_BYTES - partial) * 1.05

    def with_free(free: int) -> list[str]:
        facts = changed({"host.filesystems./data/models.free_bytes": free})
        facts["host"]["trees"][f"{MODEL}.partial"].update(exists=True, bytes=partial)
        return [finding.id for finding in _preflight.findings(**facts)]

    assert with_free(int(missing) + 1) == []
    if missing:
        assert with_free(int(missing) - 1) == ["DISK"]


def test_a_model_that_is_there_needs_no_room() -> None:
    assert judge({f"host.trees.{MODEL}.exists": True, "host.filesystems./data/models.free_bytes": 0}) == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [("gone -> call them", "call them"), ("gone", "correct the release, or set fleet_hub_endpoint")],
)
def test_the_remedy_of_the_source_is_its_own_or_a_general_one(error: str, remedy: str) -> None:
    [found] = judge({"model.error": error, "model.config": None})
    assert (found.evidence, found.remedy) == ("gone", remedy)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, f"driver {DRIVER}; deepseek: "),
        (BARE, "no driver yet; deepseek: "),
        (BARE | {"model.config": None}, "no driver yet"),
    ],
)
def test_a_fit_host_is_one_line(changes: Facts, end: str) -> None:
    [line] = report(changes)
    assert line.startswith(
        "h20-01  fit  8 x NVIDIA H20-3e, 4 NVSwitches, 1024 GiB RAM, ubuntu 24.04, kernel 6.8.0-60-generic, "
    )
    assert end in line
    assert line.endswith((" tokens of KV cache", "no driver yet"))
    assert len(line) <= _preflight.WIDTH


def test_a_report_has_refusals_first_and_marks_the_rest() -> None:
    lines = report({"gpu.kernel.headers": False, "gpu.smi.gpus.0.ecc": None, "host.ports": {"8000": NGINX}})
    assert lines[0] == "h20-01  NOT FIT  profile h20_141g"
    marked = [line.split()[:2] for line in lines[1:] if not line.strip().startswith("->")]
    assert marked == [["PORT", "port"], ["GPU-ECC", "not"], ["KERNEL-HEADERS", "warning:"]]
    assert report({"gpu.smi.gpus.0.ecc": None})[0] == "h20-01  COULD NOT TELL  profile h20_141g"


@pytest.mark.parametrize("case", [case for case in CASES if case.severity], ids=lambda case: case.id)
def test_a_report_keeps_to_its_width_and_the_words_in_their_order(case: Case) -> None:
    lines = report(case.changes)
    words = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= _preflight.WIDTH
    for finding in judge(case.changes):
        assert f"{' '.join(finding.evidence.split())} -> {finding.remedy}" in words


def test_remedies_stand_in_one_column() -> None:
    lines = report({"host.os.id": "rocky", "host.architecture": "aarch64", "gpu.smi.gpus.3.mig": "Enabled"})
    assert len(lines) == 4
    assert len({line.index("  -> ") for line in lines[1:]}) == 1
