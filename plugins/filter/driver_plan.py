# SPDX-License-Identifier: Apache-2.0
"""Filter of the driver stage: what has to change on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: driver_plan
short_description: Compare the driver of a host with a release
version_added: 1.0.0
description:
  - Says what differs from the release, what stands against changing it, and whether a reboot is needed. Asks and changes nothing.
  - The packages of NVIDIA that carry the driver's version, its pinning package and DCGM have to be of the release's versions and held.
  - Driver packages of another archive, and those of the closed kernel modules, are foreign.
positional: release, policy
options:
  _input:
    description: What M(h20.fleet.gpu_info) returned.
    type: dict
    required: true
  release:
    description: The release, with driver.version and dcgm.version.
    type: dict
    required: true
  policy:
    description: replace and secure_boot_enrolled (consent of the site), kernel (hold or follow).
    type: dict
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show what differs
  ansible.builtin.debug:
    msg: "{{ (gpu | h20.fleet.driver_plan(release_definition, {'replace': false, 'secure_boot_enrolled': false, 'kernel': 'hold'})).differences }}"
"""

RETURN = r"""
_value:
  description:
    - changes (lines on packages that are not as the release wants them), interrupts (whether changing them disturbs what uses the GPUs),
      differences (changes, and lines on holds), refusals (lines with their remedies), reboot (reasons).
    - required (package to upstream version, empty for any), move (installed packages that follow, likewise), remove (packages that go),
      headers (packages of the kernel to install), hold and release (packages whose hold is to be set or released).
  type: dict
"""

import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _dpkg

OPEN_DRIVER = "nvidia-open"
FABRIC = ("nvidia-fabricmanager", "libnvidia-nscq")
DCGM = "datacenter-gpu-manager-4-cuda13"
PINNING = "nvidia-driver-pinning-"
#: Triggers that wait are ordinary.
WHOLE = {"installed", "triggers-pending", "triggers-awaited"}


class Packages(t.NamedTuple):
    """The packages of a host, by what the stage does with them."""

    driver: list[dict[str, t.Any]]
    foreign: list[dict[str, t.Any]]
    dcgm: list[dict[str, t.Any]]
    pinning: list[dict[str, t.Any]]

    @classmethod
    def of(cls, gpu: dict[str, t.Any]) -> Packages:
        sorts = cls([], [], [], [])
        for package in gpu["packages"]:
            if package["name"].startswith(PINNING):
                sorts.pinning.append(package)
            elif package["name"].startswith("datacenter-gpu-manager"):
                sorts.dcgm.append(package)
            elif _dpkg.is_driver(package):
                (sorts.foreign if _dpkg.is_foreign(package) else sorts.driver).append(package)
        return sorts


def driver_plan(gpu: dict[str, t.Any], release: dict[str, t.Any], policy: dict[str, t.Any]) -> dict[str, t.Any]:
    """What differs, what stands against it, and what follows; see RETURN."""
    driver, dcgm = release["driver"]["version"], release["dcgm"]["version"]
    there = Packages.of(gpu)
    pinning = PINNING + driver
    required = dict.fromkeys((OPEN_DRIVER, *(FABRIC if gpu["pci_nvswitches"] else ())), driver) | {DCGM: dcgm}
    closed = [package["name"] for package in there.foreign if _dpkg.is_closed(package)]
    move = {package["name"]: driver for package in there.driver} | {package["name"]: dcgm for package in there.dcgm}
    # What NVIDIA has under the same name is replaced by it; the rest of a foreign driver goes.
    move |= {package["name"]: driver for package in there.foreign if package["name"] not in closed}
    other_pinning = [package["name"] for package in there.pinning if package["name"] != pinning]
    kernel = Kernel.of(gpu)

    ours = {package["name"]: package for package in [*there.driver, *there.dcgm]}
    pinned = {package["name"]: package for package in there.pinning if package["name"] == pinning}
    breaking = _wrong(ours, move | required, required)
    breaking += [f"{package['name']} {package['version']} is foreign" for package in there.foreign]
    breaking += ["a driver of the .run installer is foreign"] if gpu["runfile"] else []
    changes = breaking + _wrong(pinned, {}, [pinning]) + [f"{name} is in the way" for name in other_pinning]
    changes += [f"{name} is not installed" for name in kernel.headers]
    hold = [name for name, package in (ours | pinned).items() if not package["held"]]
    hold += kernel.free if policy["kernel"] == "hold" else []
    release_holds = kernel.held if policy["kernel"] == "follow" else []
    holds = [f"{name} is not held" for name in hold] + [f"{name} is held" for name in release_holds]
    return {
        "changes": changes,
        "interrupts": bool(breaking),
        "differences": changes + holds,
        "refusals": _refusals(gpu, there.foreign, policy, changes=bool(changes)),
        "reboot": _reboot(gpu, driver),
        "required": required | {pinning: ""},
        "move": {name: version for name, version in move.items() if name not in required},
        "remove": closed + other_pinning,
        "headers": kernel.headers,
        "hold": hold,
        "release": release_holds,
    }


def _wrong(there: dict[str, dict[str, t.Any]], versions: dict[str, str], required: t.Iterable[str]) -> list[str]:
    """What is absent, of another version or not whole."""
    wrong = [f"{name} is not installed" for name in required if name not in there]
    for name, package in there.items():
        wanted = versions.get(name, package["upstream_version"])
        if package["upstream_version"] != wanted:
            wrong.append(f"{name} is {package['upstream_version']}, not {wanted}")
        elif package["status"] not in WHOLE:
            wrong.append(f"{name} is {package['status']}")
    return wrong


class Kernel(t.NamedTuple):
    """The kernel's packages: headers that are missing, and metapackages that are free to move or held."""

    headers: list[str]
    free: list[str]
    held: list[str]

    @classmethod
    def of(cls, gpu: dict[str, t.Any]) -> Kernel:
        there = {package["name"]: package["held"] for package in gpu["kernel"]["metapackages"]}
        images = [name for name in there if name.startswith("linux-image-")]
        wanted = [name.replace("linux-image-", "linux-headers-", 1) for name in images]
        running = [] if gpu["kernel"]["headers"] else [f"linux-headers-{gpu['kernel']['release']}"]
        metapackages = [name for name in (*images, *wanted) if name in there]
        return cls(
            headers=running + [name for name in wanted if name not in there],
            free=[name for name in metapackages if not there[name]],
            held=[name for name in metapackages if there[name]],
        )


def _reboot(gpu: dict[str, t.Any], wanted: str) -> list[str]:
    loaded = gpu["module"]["loaded_version"]
    reasons = ["nouveau holds the GPUs"] if gpu["module"]["nouveau"] else []
    if loaded != wanted:
        reasons.append(f"module {loaded} is loaded, not {wanted}" if loaded else "no nvidia module is loaded")
    if loaded and gpu["userspace_version"] not in ("", loaded):
        reasons.append(f"userspace {gpu['userspace_version']} stands over module {loaded}")
    return reasons


def _refusals(
    gpu: dict[str, t.Any], foreign: list[dict[str, t.Any]], policy: dict[str, t.Any], *, changes: bool
) -> list[str]:
    refusals = []
    if gpu["dpkg"]["interrupted"] and changes:
        refusals.append(
            f"DPKG-INTERRUPTED: dpkg did not finish {', '.join(gpu['dpkg']['interrupted'])}"
            " -> run `dpkg --configure -a` and `apt-get --fix-broken install` on the host, then the stage again"
        )
    alien = [f"{package['name']} {package['version']} ({package['archive']})" for package in foreign]
    alien += ["a driver of NVIDIA's .run installer"] if gpu["runfile"] else []
    if alien and not policy["replace"]:
        refusals.append(
            f"DRIVER-FOREIGN: the host has {', '.join(alien)} -> let the stage replace them by fleet_driver_replace: true, or remove them"
        )
    # A module that is loaded shows that DKMS' key is enrolled, unless somebody else has built it.
    enrolled = policy["secure_boot_enrolled"] or (gpu["module"]["loaded_version"] and not alien)
    if gpu["kernel"]["secure_boot"] and not enrolled:
        refusals.append(
            "SECURE-BOOT: Secure Boot is on and no nvidia module is loaded, so the kernel may refuse the one that DKMS signs"
            " -> enrol DKMS' key (mokutil --import /var/lib/dkms/mok.pub, confirmed on the console) and set fleet_secure_boot_enrolled: true,"
            " or turn Secure Boot off"
        )
    return refusals


class FilterModule:
    """Filters of the driver stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"driver_plan": driver_plan}
