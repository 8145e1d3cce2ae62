# SPDX-License-Identifier: Apache-2.0
"""Judge a host: what was read of it against what its profile and its release need."""

from __future__ import annotations

import dataclasses
import typing as t

GIB = 1024**3
#: Share of the model that must stay free beside it, for the filesystem's own needs.
DISK_MARGIN = 0.05
#: Distributions and releases that the stages know the packages of.
SUPPORTED_OS = {("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12")}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One reason why a host is not fit: an identifier to search for, what was seen, and what to do."""

    id: str
    evidence: str
    remedy: str


def findings(host: dict[str, t.Any], gpu: dict[str, t.Any], need: dict[str, t.Any]) -> list[Finding]:
    """All findings of one host, in the order an operator would mend them.

    ``host`` is what host_info returned and ``gpu`` what gpu_info returned. ``need`` has profile (name or "auto"), memory_gib,
    model_root, model_path, model_bytes, ports (instance name by port) and source_error ("" where the hub has the revision).
    """
    return [
        *_system(host, need),
        *_hardware(gpu, need["profile"]),
        *_disk(host, need),
        *_ports(host, need),
        *_source(need),
    ]


def _system(host: dict[str, t.Any], need: dict[str, t.Any]) -> t.Iterator[Finding]:
    system = (host["os"]["id"], host["os"]["version_id"])
    if system not in SUPPORTED_OS:
        known = ", ".join(sorted(" ".join(entry) for entry in SUPPORTED_OS))
        yield Finding("OS", f"{' '.join(system)} is none of {known}", "reinstall the host with one of them")
    if host["architecture"] != "x86_64":
        yield Finding("ARCH", f"{host['architecture']}; the locks are for x86_64", "use an x86_64 host")
    memory = host["memory_bytes"] / GIB
    if memory < need["memory_gib"]:
        yield Finding(
            "MEMORY",
            f"{memory:.0f} GiB of RAM, at least {need['memory_gib']} GiB wanted",
            "fit more memory, or lower preflight_memory_gib if loading may be slow",
        )


def _hardware(gpu: dict[str, t.Any], wanted: str) -> t.Iterator[Finding]:
    devices = sorted({entry["device"] for entry in gpu["pci_gpus"]})
    if not devices:
        yield Finding("GPU-COUNT", "no NVIDIA GPU on the PCI bus", "power-cycle the host; check BIOS and risers")
        return
    name = gpu["profile"] if wanted == "auto" else wanted
    if name is None or name not in gpu["profiles"]:
        known = ", ".join(f"{key} (10de:{value['pci_device']})" for key, value in gpu["profiles"].items())
        yield Finding(
            "GPU-UNKNOWN",
            f"{len(gpu['pci_gpus'])} GPUs 10de:{', 10de:'.join(devices)} match no profile; known: {known}",
            "take the host out of the group",
        )
        return
    profile = gpu["profiles"][name]
    strangers = [entry for entry in gpu["pci_gpus"] if entry["device"] != profile["pci_device"]]
    if strangers:
        listed = ", ".join(f"{entry['address']} is 10de:{entry['device']}" for entry in strangers)
        yield Finding(
            "GPU-MODEL",
            f"profile {name} is 10de:{profile['pci_device']}, but {listed}",
            "replace the GPUs, or name the profile they have",
        )
    if len(gpu["pci_gpus"]) != profile["gpus"]:
        yield Finding(
            "GPU-COUNT",
            f"{len(gpu['pci_gpus'])} of {profile['gpus']} GPUs are on the PCI bus",
            "power-cycle the host; if the GPU stays away, have it replaced",
        )
    if len(gpu["pci_nvswitches"]) != profile["nvswitches"]:
        yield Finding(
            "NVSWITCH-COUNT",
            f"{len(gpu['pci_nvswitches'])} of {profile['nvswitches']} NVSwitches are on the PCI bus",
            "power-cycle the host; if the NVSwitch stays away, have the board replaced",
        )
    yield from _driver(gpu, profile)


def _driver(gpu: dict[str, t.Any], profile: dict[str, t.Any]) -> t.Iterator[Finding]:
    """What a driver that is already there says against the bus; a host without one is not at fault here."""
    if gpu["smi"] is None:
        return
    answering = {entry["address"]: entry for entry in gpu["smi"]["gpus"]}
    silent = [entry["address"] for entry in gpu["pci_gpus"] if entry["address"] not in answering]
    if silent:
        yield Finding(
            "GPU-LOST",
            f"{len(answering)} of {len(gpu['pci_gpus'])} GPUs answer; {', '.join(silent)} on the PCI bus but not in nvidia-smi",
            "look for an Xid in the kernel log and power-cycle the host; if it returns, have the GPU replaced",
        )
    for address, entry in answering.items():
        if entry["memory_mib"] is not None and entry["memory_mib"] != profile["memory_mib"]:
            yield Finding(
                "GPU-MEMORY",
                f"{address} has {entry['memory_mib']} MiB, the profile says {profile['memory_mib']}",
                "have the GPU replaced",
            )


def _disk(host: dict[str, t.Any], need: dict[str, t.Any]) -> t.Iterator[Finding]:
    if host["trees"][need["model_path"]]["exists"]:
        return
    present = host["trees"][f"{need['model_path']}.partial"]["bytes"]
    missing = max(0, need["model_bytes"] - present) * (1 + DISK_MARGIN)
    filesystem = host["filesystems"][need["model_root"]]
    if filesystem["free_bytes"] < missing:
        yield Finding(
            "DISK",
            f"{need['model_root']} has {filesystem['free_bytes'] / GIB:.2f} GiB free, the model needs {missing / GIB:.2f} GiB with {DISK_MARGIN:.0%} to spare",
            f"free {(missing - filesystem['free_bytes']) / GIB:.2f} GiB or set fleet_model_root",
        )


def _ports(host: dict[str, t.Any], need: dict[str, t.Any]) -> t.Iterator[Finding]:
    for port, instance in need["ports"].items():
        listener = host["ports"].get(str(port))
        if listener and listener["unit"] != f"vllm@{instance}.service":
            holder = (
                f"{listener['command'] or 'a hidden process'} (pid {listener['pid']}, {listener['unit'] or 'no unit'})"
            )
            yield Finding(
                "PORT",
                f"port {port} of instance {instance} is held by {holder}",
                "stop it, or give the instance another port",
            )


def _source(need: dict[str, t.Any]) -> t.Iterator[Finding]:
    if need["source_error"]:
        evidence, _arrow, remedy = need["source_error"].partition(" -> ")
        yield Finding("MODEL-SOURCE", evidence, remedy or "correct the release, or set fleet_hub_endpoint")


def report(hostname: str, host: dict[str, t.Any], gpu: dict[str, t.Any], found: list[Finding]) -> str:
    """The lines an operator reads of one host: the verdict first, then a line for each finding."""
    if found:
        widths = (max(len(entry.id) for entry in found), max(len(entry.evidence) for entry in found))
        lines = [f"  {entry.id:<{widths[0]}}  {entry.evidence:<{widths[1]}}  -> {entry.remedy}" for entry in found]
        return "\n".join([f"{hostname}  NOT FIT  profile {gpu['profile'] or 'unknown'}", *lines])
    profile = gpu["profiles"][gpu["profile"]] if gpu["profile"] else {}
    driver = f"driver {gpu['module_version']}" if gpu["module_version"] else "no driver yet"
    return (
        f"{hostname}  fit  {len(gpu['pci_gpus'])} x {profile.get('product', '10de:' + gpu['pci_gpus'][0]['device'])}, {len(gpu['pci_nvswitches'])} NVSwitches,"
        f" {host['memory_bytes'] / GIB:.0f} GiB RAM, {' '.join(host['os'].values())}, kernel {host['kernel']}, {driver}"
    )
