# SPDX-License-Identifier: Apache-2.0
"""What the driver's stage makes of a host and a release: differences, refusals, reboots, and the packages of its transaction."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter import driver_packages, driver_plan

make_plan = driver_plan.FilterModule().filters()["driver_plan"]
resolve = driver_packages.FilterModule().filters()["driver_packages"]

OLD, NEW, DCGM = "580.159.04", "580.173.02", "4.5.2"
REPOSITORY = "http://mirror.test/compute/cuda/repos/debian12/x86_64/"
DRIVER = ("nvidia-open", "nvidia-fabricmanager", "libnvidia-nscq", "libcuda1", "nvidia-kernel-open-dkms")
KERNEL = [{"name": "linux-image-amd64", "held": True}, {"name": "linux-headers-amd64", "held": True}]
FREE = [{**package, "held": False} for package in KERNEL]
POLICY = {"replace": False, "secure_boot_enrolled": False, "kernel": "hold"}


def package(name: str, version: str, **fields: Any) -> dict[str, Any]:
    upstream = version.rpartition(":")[2].rpartition("-")[0]
    return {
        "name": name,
        "version": version,
        "upstream_version": upstream,
        "archive": "nvidia",
        "status": "installed",
        "held": True,
    } | fields


def host(*packages: dict[str, Any], driver: str = NEW, **changes: Any) -> dict[str, Any]:
    """A converged host of this driver, with further packages and other fields."""
    gpu: dict[str, Any] = {
        "pci_nvswitches": [{}] * 4,
        "packages": [
            *(package(name, f"{driver}-1") for name in DRIVER),
            package(f"nvidia-driver-pinning-{driver}", f"{driver}-1"),
            package("datacenter-gpu-manager-4-cuda13", f"1:{DCGM}-1"),
            package("libnvidia-egl-gbm1", "1.1.2-1", held=False),
            *packages,
        ],
        "runfile": False,
        "dpkg": {"interrupted": [], "lock_holder": None},
        "kernel": {
            "release": "6.1.0-40-amd64",
            "headers": True,
            "secure_boot": False,
            "metapackages": KERNEL,
        },
        "module": {"loaded_version": driver, "nouveau": False},
        "userspace_version": driver,
    }
    for key, value in changes.items():
        gpu[key] = gpu[key] | value if isinstance(gpu[key], dict) else value
    return gpu


def plan(gpu: dict[str, Any], driver: str = NEW, **policy: Any) -> dict[str, Any]:
    before = copy.deepcopy(gpu)
    release = {"driver": {"version": driver}, "dcgm": {"version": DCGM}}
    answer: dict[str, Any] = make_plan(gpu, release, POLICY | policy)
    assert gpu == before
    return answer


def test_a_converged_host_needs_nothing() -> None:
    found = plan(host())
    empty = ("changes", "differences", "refusals", "reboot", "remove", "headers", "hold", "release")
    assert {key: found[key] for key in empty} == {key: [] for key in empty}
    assert not found["interrupts"]


def test_a_bare_host_needs_everything() -> None:
    bare = host(packages=[], kernel={"metapackages": FREE[:1]}, module={"loaded_version": ""}, userspace_version="")
    found = plan(bare)
    assert set(found["required"]) == {
        *DRIVER[:3],
        "datacenter-gpu-manager-4-cuda13",
        f"nvidia-driver-pinning-{NEW}",
    }
    assert found["headers"] == ["linux-headers-amd64"]
    assert found["interrupts"]
    assert found["reboot"] == ["no nvidia module is loaded"]
    assert found["hold"] == ["linux-image-amd64"]


def test_fabric_manager_comes_with_nvswitches_alone() -> None:
    assert "nvidia-fabricmanager" not in plan(host(packages=[], pci_nvswitches=[]))["required"]


@pytest.mark.parametrize(("here", "wanted"), [(OLD, NEW), (NEW, OLD)])
def test_every_package_of_the_driver_moves_both_ways(here: str, wanted: str) -> None:
    found = plan(host(driver=here), driver=wanted)
    for name in DRIVER:
        assert f"{name} is {here}, not {wanted}" in found["changes"]
    assert {*found["required"], *found["move"]} >= {*DRIVER}
    assert found["remove"] == [f"nvidia-driver-pinning-{here}"]
    assert found["reboot"] == [f"module {here} is loaded, not {wanted}"]
    assert "libnvidia-egl-gbm1" not in found["move"], "it has a version of its own"


@pytest.mark.parametrize(
    ("gpu", "difference"),
    [
        (host(package("nvidia-modprobe", f"{NEW}-1", held=False)), "nvidia-modprobe is not held"),
        (host(package("nvidia-modprobe", f"{OLD}-1")), f"nvidia-modprobe is {OLD}, not {NEW}"),
        (host(package("nvidia-modprobe", f"{NEW}-1", status="half-configured")), "nvidia-modprobe is half-configured"),
        (host(package("nvidia-driver-pinning-580", "580-1")), "nvidia-driver-pinning-580 is in the way"),
        (
            host(package("datacenter-gpu-manager-4-core", "1:4.4.2-1")),
            f"datacenter-gpu-manager-4-core is 4.4.2, not {DCGM}",
        ),
        (host(kernel={"headers": False}), "linux-headers-6.1.0-40-amd64 is not installed"),
        (
            host(package("nvidia-utils-580", f"{NEW}-0ubuntu1", archive="ubuntu")),
            f"nvidia-utils-580 {NEW}-0ubuntu1 is foreign",
        ),
        (host(runfile=True), "a driver of the .run installer is foreign"),
    ],
)
def test_what_differs_is_named(gpu: dict[str, Any], difference: str) -> None:
    assert plan(gpu, replace=True)["differences"] == [difference]


@pytest.mark.parametrize("status", ["triggers-pending", "triggers-awaited"])
def test_triggers_that_wait_are_ordinary(status: str) -> None:
    assert plan(host(package("nvidia-modprobe", f"{NEW}-1", status=status)))["differences"] == []


@pytest.mark.parametrize(
    ("policy", "metapackages", "hold", "release"),
    [
        ("hold", [FREE[0], KERNEL[1]], ["linux-image-amd64"], []),
        ("hold", KERNEL, [], []),
        ("follow", KERNEL, [], ["linux-image-amd64", "linux-headers-amd64"]),
        ("follow", FREE, [], []),
    ],
)
def test_policy_of_the_kernel(
    policy: str, metapackages: list[dict[str, Any]], hold: list[str], release: list[str]
) -> None:
    found = plan(host(kernel={"metapackages": metapackages}), kernel=policy)
    assert (found["hold"], found["release"]) == (hold, release)
    assert found["changes"] == []
    assert not found["interrupts"], "a hold disturbs nobody"


@pytest.mark.parametrize(
    ("gpu", "consent", "finding", "evidence"),
    [
        (host(runfile=True), {"replace": True}, "DRIVER-FOREIGN", ".run"),
        (
            host(package("nvidia-utils-580", f"{NEW}-0ubuntu1", archive="ubuntu")),
            {"replace": True},
            "DRIVER-FOREIGN",
            "nvidia-utils-580",
        ),
        (host(package("libcuda1", "535.1.1-1", archive="debian")), {"replace": True}, "DRIVER-FOREIGN", "(debian)"),
        (host(package("nvidia-kernel-dkms", f"{NEW}-1")), {"replace": True}, "DRIVER-FOREIGN", "nvidia-kernel-dkms"),
        (host(package("cuda-drivers", f"{NEW}-1")), {"replace": True}, "DRIVER-FOREIGN", "cuda-drivers"),
        (host(package("nvidia-dkms-580", f"{NEW}-1")), {"replace": True}, "DRIVER-FOREIGN", "nvidia-dkms-580"),
        (
            host(kernel={"secure_boot": True}, module={"loaded_version": ""}),
            {"secure_boot_enrolled": True},
            "SECURE-BOOT",
            "Secure Boot is on",
        ),
    ],
)
def test_what_only_the_site_decides_is_refused_without_its_consent(
    gpu: dict[str, Any], consent: dict[str, Any], finding: str, evidence: str
) -> None:
    (refusal,) = plan(gpu)["refusals"]
    assert refusal.startswith(f"{finding}: ")
    assert evidence in refusal
    assert (
        f"fleet_{'driver_replace' if 'replace' in consent else 'secure_boot_enrolled'}: true"
        in refusal.partition(" -> ")[2]
    )
    assert plan(gpu, **consent)["refusals"] == []


def test_a_module_that_somebody_else_signed_does_not_show_an_enrolled_key() -> None:
    gpu = host(package("nvidia-utils-580", f"{NEW}-0ubuntu1", archive="ubuntu"), kernel={"secure_boot": True})
    (refusal,) = plan(gpu, replace=True)["refusals"]
    assert refusal.startswith("SECURE-BOOT: ")


def test_all_refusals_are_said_at_once() -> None:
    gpu = host(
        runfile=True,
        dpkg={"interrupted": ["linux-headers-amd64"]},
        kernel={"secure_boot": True},
        module={"loaded_version": ""},
    )
    assert [text.partition(":")[0] for text in plan(gpu)["refusals"]] == [
        "DPKG-INTERRUPTED",
        "DRIVER-FOREIGN",
        "SECURE-BOOT",
    ]


@pytest.mark.parametrize(
    "gpu",
    [
        host(kernel={"secure_boot": True}),
        host(kernel={"secure_boot": None}, module={"loaded_version": ""}),
        host(dpkg={"interrupted": ["vim"]}),
        host(package("nvidia-driver-580-open", f"{NEW}-1")),
        host(package("nvidia-dkms-580-open", f"{NEW}-1")),
        host(package("nvidia-prime", "0.8.17", archive="ubuntu", upstream_version="0.8.17")),
        host(package("nvidia-kernel-common", "20220217+3-1", archive="debian")),
    ],
    ids=["module-loaded", "no-uefi", "nothing-to-change", "open-driver", "open-dkms", "ubuntu-tool", "debian-helper"],
)
def test_what_stands_against_nothing(gpu: dict[str, Any]) -> None:
    assert plan(gpu)["refusals"] == []


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"module": {"nouveau": True, "loaded_version": ""}}, ["nouveau holds the GPUs", "no nvidia module is loaded"]),
        (
            {"module": {"loaded_version": OLD}},
            [f"module {OLD} is loaded, not {NEW}", f"userspace {NEW} stands over module {OLD}"],
        ),
        ({"userspace_version": OLD}, [f"userspace {OLD} stands over module {NEW}"]),
        ({"userspace_version": ""}, []),
    ],
)
def test_reasons_to_reboot(changes: dict[str, Any], reasons: list[str]) -> None:
    assert plan(host(**changes))["reboot"] == reasons


def madison(*names: str, versions: tuple[str, ...], source: str = f"{REPOSITORY}  Packages") -> list[str]:
    return [f"{name} | {version} | {source}" for name in names for version in versions]


def offer(*versions: str) -> list[str]:
    lines = madison(*DRIVER, versions=versions)
    lines += madison("datacenter-gpu-manager-4-cuda13", versions=("1:4.6.0-1", f"1:{DCGM}-1"))
    for version in versions:
        lines += madison(f"nvidia-driver-pinning-{version.rpartition('-')[0]}", versions=(version,))
    return lines


def test_the_transaction_names_exact_versions() -> None:
    found = resolve(plan(host(driver=OLD)), offer("595.71.05-1", f"{NEW}-1", f"{OLD}-1"), REPOSITORY)
    assert found["gone"] == []
    assert found["packages"] == [
        *(f"{name}={NEW}-1" for name in DRIVER[:3]),
        f"datacenter-gpu-manager-4-cuda13=1:{DCGM}-1",
        f"nvidia-driver-pinning-{NEW}={NEW}-1",
        *(f"{name}={NEW}-1" for name in DRIVER[3:]),
        f"nvidia-driver-pinning-{OLD}-",
    ]


def test_archives_do_not_mix() -> None:
    """Ubuntu's build of the very same driver does not stand in for NVIDIA's."""
    lines = offer(f"{OLD}-1") + madison(
        "nvidia-open", versions=(f"{NEW}-0ubuntu1",), source="http://archive.test/ubuntu noble/main amd64 Packages"
    )
    gone = resolve(plan(host(driver=OLD)), lines, REPOSITORY)["gone"]
    assert f"nvidia-open {NEW} (there: {OLD}-1)" in gone


def test_what_is_gone_is_named_with_what_is_there() -> None:
    bare = host(packages=[], kernel={"headers": False})
    gone = resolve(plan(bare, driver="580.1.1"), offer(f"{NEW}-1", f"{OLD}-1"), REPOSITORY)["gone"]
    assert gone == [
        *(f"{name} 580.1.1 (there: {NEW}-1, {OLD}-1)" for name in DRIVER[:3]),
        "nvidia-driver-pinning-580.1.1 (there: none)",
        "linux-headers-6.1.0-40-amd64 (there: none)",
    ]


def test_packages_that_the_new_driver_dropped_go() -> None:
    """As on Ubuntu from 580 to 590, where names lose their branch."""
    found = resolve(plan(host(package("libnvidia-compute-580", f"{OLD}-1"), driver=OLD)), offer(f"{NEW}-1"), REPOSITORY)
    assert "libnvidia-compute-580-" in found["packages"]


def test_foreign_packages_are_replaced_under_their_names_or_go() -> None:
    gpu = host(
        *(package(name, "535.1.1-1", archive="debian") for name in ("nvidia-persistenced", "nvidia-smi")),
        package("nvidia-kernel-dkms", f"{NEW}-1"),
    )
    lines = offer(f"{NEW}-1") + madison("nvidia-persistenced", "nvidia-kernel-dkms", versions=(f"{NEW}-1",))
    packages = resolve(plan(gpu, replace=True), lines, REPOSITORY)["packages"]
    assert {f"nvidia-persistenced={NEW}-1", "nvidia-smi-", "nvidia-kernel-dkms-"} <= set(packages)


def test_headers_come_from_the_distribution() -> None:
    lines = [
        *offer(f"{NEW}-1"),
        "linux-headers-6.1.0-40-amd64 | 6.1.1-1 | http://deb.test bookworm/main amd64 Packages",
    ]
    assert (
        "linux-headers-6.1.0-40-amd64" in resolve(plan(host(kernel={"headers": False})), lines, REPOSITORY)["packages"]
    )
