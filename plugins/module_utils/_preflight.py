# SPDX-License-Identifier: Apache-2.0
"""Judge a host: what was read of it against what its profile and its release need.

Pure functions. A field that was not told (null) is not guessed: only of memory and ECC, which must be known, it is a finding itself.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import textwrap
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _dpkg, _model_fit, _serving
from ansible_collections.h20.fleet.plugins.module_utils._hardware import MEMORY_TOLERANCE
from ansible_collections.h20.fleet.plugins.module_utils._serving_profiles import PROFILES

Facts = t.Mapping[str, t.Any]

GIB = 1024**3
#: Share of the model that must stay free beside it, for the filesystem's own needs.
DISK_MARGIN = 0.05
#: Distributions and releases that the stages know the packages of.
SUPPORTED_OS = {("ubuntu", "22.04"), ("ubuntu", "24.04"), ("debian", "12")}
#: What an idle GPU may have in use, in MiB: the driver itself takes some hundred.
IDLE_MEMORY_MIB = 2048
#: Kernel drivers that a GPU may be bound to; nouveau has a finding of its own.
OUR_DRIVERS = (None, "", "nvidia", "nouveau")
#: Columns of a report.
WIDTH = 160

REFUSE, WARN, UNKNOWN = "refuse", "warn", "unknown"
FIT, NOT_FIT, COULD_NOT_TELL = "fit", "not_fit", "unknown"

DRIVER_STAGE = "run the stage: ansible-playbook h20.fleet.site --tags nvidia_driver"
POWER_CYCLE = "power-cycle the host; if the GPU stays away, have it replaced"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: an identifier to search for, how much it matters, what was seen, and what to do."""

    id: str
    severity: str
    evidence: str
    remedy: str


def verdict(found: t.Iterable[Finding]) -> str:
    """not_fit where one finding refuses; else unknown where something that matters could not be told; else fit."""
    severities = {finding.severity for finding in found}
    if REFUSE in severities:
        return NOT_FIT
    return COULD_NOT_TELL if UNKNOWN in severities else FIT


def findings(host: Facts, gpu: Facts, model: Facts, need: Facts) -> list[Finding]:
    """All findings of one host, in the order an operator would mend them.

    ``host``, ``gpu`` and ``model`` are what host_info, gpu_info and model_info returned; an empty ``host`` or ``model`` is not judged.
    ``need`` is as the options of preflight_report say.
    """
    return [
        *(_system(host, need) if host else ()),
        *_bus(gpu, need),
        *_packages(gpu, need),
        *_driver(gpu, need),
        *_gpus(gpu, need),
        *(_peers(gpu) if need["nodes"] == "multi" else ()),
        *_model(gpu, model, need),
        *(_disk(host, need) if host else ()),
        *(_ports(host, need) if host else ()),
        *_busy(host, gpu, need),
    ]


def profile_of(gpu: Facts, need: Facts) -> tuple[str, dict[str, t.Any]] | None:
    """Name and figures of the profile to judge by; None where no profile has the hardware.

    It is the one that is vouched for by name, else the one that gpu_info recognised, else the one of most GPUs by PCI device id alone.
    """
    profiles = gpu["profiles"]
    name = gpu["profile"] if need["profile"] == "auto" else need["profile"]
    if name is None and gpu["pci_gpus"]:
        [(device, _count)] = collections.Counter(entry["device"] for entry in gpu["pci_gpus"]).most_common(1)
        name = next((key for key, value in profiles.items() if value["pci_device"] == device), None)
    return (name, profiles[name]) if name in profiles else None


def plans(gpu: Facts, model: Facts, need: Facts) -> list[dict[str, t.Any]]:
    """What of the model fits into the GPUs for each instance; none where the GPUs or the model are not known."""
    known = profile_of(gpu, need)
    if known is None or not model.get("config"):
        return []
    planned = []
    for instance in need["instances"]:
        try:
            arguments = _serving.arguments(instance)
        except (KeyError, _serving.SettingError):
            continue  # a finding of its own
        # A model that the site has put there itself is not the one that was read.
        config = None if instance.get("model") else model["config"]
        found = _model_fit.plan(config, model.get("weight_bytes"), known[1], arguments)
        planned.append({"instance": instance["name"]} | dataclasses.asdict(found))
    return planned


def _system(host: Facts, need: Facts) -> t.Iterator[Finding]:
    system = (host["os"]["id"], host["os"]["version_id"])
    if system not in SUPPORTED_OS:
        known = ", ".join(sorted(" ".join(entry) for entry in SUPPORTED_OS))
        yield Finding("OS", REFUSE, f"{' '.join(system)} is none of {known}", "reinstall the host with one of them")
    if host["architecture"] != "x86_64":
        yield Finding("ARCH", REFUSE, f"{host['architecture']}; the locks are for x86_64", "use an x86_64 host")
    memory = host["memory_bytes"] / GIB
    if memory < need["memory_gib"]:
        yield Finding(
            "MEMORY",
            REFUSE,
            f"{memory:.0f} GiB of RAM, at least {need['memory_gib']} GiB wanted",
            "fit more memory, or lower preflight_memory_gib if loading may be slow",
        )


def _bus(gpu: Facts, need: Facts) -> t.Iterator[Finding]:
    """What the PCI bus says, driver or not."""
    present = gpu["pci_gpus"]
    if not present:
        yield Finding(
            "GPU-COUNT", REFUSE, "no NVIDIA GPU on the PCI bus", "power-cycle the host; check BIOS and risers"
        )
        return
    known = profile_of(gpu, need)
    if known is None:
        devices = ", ".join(f"10de:{device}" for device in sorted({entry["device"] for entry in present}))
        names = ", ".join(f"{name} (10de:{value['pci_device']})" for name, value in gpu["profiles"].items())
        yield Finding(
            "GPU-UNKNOWN",
            REFUSE,
            f"{len(present)} GPUs {devices} match no profile; known: {names}",
            "take the host out of the group, or vouch for its hardware in fleet_hardware_profiles",
        )
        return
    name, profile = known
    strangers = [
        f"{entry['address']} is 10de:{entry['device']}" for entry in present if entry["device"] != profile["pci_device"]
    ]
    if strangers:
        yield Finding(
            "GPU-MODEL",
            REFUSE,
            f"profile {name} is 10de:{profile['pci_device']}, but {_some(strangers)}",
            "replace the GPUs, or name the profile they have",
        )
    if len(present) != profile["gpus"]:
        yield Finding("GPU-COUNT", REFUSE, f"{len(present)} of {profile['gpus']} GPUs are on the PCI bus", POWER_CYCLE)
    # A capture of nvidia-smi alone has GPUs, but no bus and no kernel.
    if gpu["kernel"]["release"] and len(gpu["pci_nvswitches"]) != profile["nvswitches"]:
        yield Finding(
            "NVSWITCH-COUNT",
            REFUSE,
            f"{len(gpu['pci_nvswitches'])} of {profile['nvswitches']} NVSwitches are on the PCI bus",
            "power-cycle the host; if the NVSwitch stays away, have the board replaced",
        )
    # A width of 0 is the kernel's word for "not told".
    narrow = [
        f"{entry['address']} x{entry['link_width']}"
        for entry in present
        if 0 < (entry["link_width"] or 0) < profile["link_width"]
    ]
    if narrow:
        yield Finding(
            "PCIE-WIDTH",
            REFUSE,
            f"PCIe links narrower than x{profile['link_width']}: {_some(narrow)}",
            "power-cycle the host; if it stays narrow, have the riser or the GPU reseated",
        )


def _packages(gpu: Facts, need: Facts) -> t.Iterator[Finding]:
    """What would stop the driver stage, or what it will replace."""
    dpkg, kernel, module = gpu["dpkg"], gpu["kernel"], gpu["module"]
    if dpkg["lock_holder"]:
        # What is half installed while dpkg runs is its work in progress.
        holder = dpkg["lock_holder"]
        yield Finding(
            "DPKG-LOCKED",
            WARN,
            f"{holder['command']} (pid {holder['pid']}) holds the lock of dpkg",
            "wait for it, or let the stage wait",
        )
    elif dpkg["interrupted"]:
        yield Finding(
            "DPKG-INTERRUPTED",
            REFUSE,
            f"dpkg was interrupted: {_some(dpkg['interrupted'])}",
            "on the host: dpkg --configure -a && apt-get --fix-broken install",
        )
    foreign = _foreign(gpu)
    if foreign:
        yield Finding(
            "DRIVER-FOREIGN",
            WARN if need["driver_replace"] else REFUSE,
            f"a driver that is not the open one of NVIDIA's repository: {_some(foreign)}",
            "the driver stage replaces it"
            if need["driver_replace"]
            else "remove it, or consent to its replacement by fleet_driver_replace: true",
        )
    # Ubuntu's own modules are signed by Ubuntu: that one of them is loaded does not say that DKMS' key is known.
    enrolled = need["secure_boot_enrolled"] or (module["loaded_version"] and not foreign)
    if kernel["secure_boot"] and not enrolled:
        yield Finding(
            "SECURE-BOOT",
            REFUSE,
            "Secure Boot is on, and no key is known to be enrolled that the driver's module could be signed with",
            "turn it off in the firmware, or enroll DKMS' key at the console and set fleet_secure_boot_enrolled: true",
        )
    if module["nouveau"] or any(entry["driver"] == "nouveau" for entry in gpu["pci_gpus"]):
        yield Finding(
            "NOUVEAU", WARN, "the kernel module nouveau is loaded", "the driver stage turns it off and reboots the host"
        )
    if kernel["headers"] is False and any(package["archive"] == "nvidia" for package in gpu["packages"]):
        yield Finding(
            "KERNEL-HEADERS",
            WARN,
            f"a driver is installed, but not the headers of the running kernel {kernel['release']}",
            "the driver stage installs them; where the archive has them no more, boot a newer kernel first",
        )


def _driver(gpu: Facts, need: Facts) -> t.Iterator[Finding]:
    """Versions against each other and against the release. What the driver stage mends is a warning."""
    module = gpu["module"]
    loaded, userspace = module["loaded_version"], gpu["userspace_version"]
    version = _version(gpu)
    if version and need["minimum_driver"] and _digits(version) < _digits(need["minimum_driver"]):
        replaced = need["driver_replace"] or not _foreign(gpu)
        yield Finding(
            "DRIVER-OLD",
            WARN if replaced else REFUSE,
            f"driver {version}; the release's CUDA needs {need['minimum_driver']}",
            f"the driver stage installs {need['driver_version']}"
            if replaced
            else "see DRIVER-FOREIGN: what may not be replaced stays too old",
        )
    others = {
        f"{what} {other}"
        for what, other in (("userspace", userspace), ("module on disk", module["installed_version"]))
        if other not in ("", loaded)
    }
    if loaded and others:
        yield Finding(
            "DRIVER-MIXED",
            WARN,
            f"the loaded module is {loaded}, but {' and '.join(sorted(others, reverse=True))}",
            "the driver stage reboots the host; until then nvidia-smi and CUDA do not work",
        )
    known = profile_of(gpu, need)
    manager = gpu["fabric_manager"]["version"]
    if loaded and known and known[1]["nvswitches"] and _told_by_programs(gpu) and _upstream(manager) != loaded:
        current = _current(gpu, need)
        yield Finding(
            "FM-VERSION",
            REFUSE if current else WARN,
            f"fabric manager {_upstream(manager) or 'is not installed'}, driver {loaded}; they must be the same",
            DRIVER_STAGE if current else "the driver stage installs both in one version",
        )
    # A driver in pieces does not answer, and the driver stage mends that; a whole one that does not answer hides what it should tell.
    if loaded and not others and userspace and gpu["smi"] is None:
        yield Finding(
            "NVIDIA-SMI",
            UNKNOWN,
            f"the driver {loaded} is loaded, but nvidia-smi says: {' '.join(gpu['smi_error'].split()) or 'nothing'}",
            "look for an Xid in the kernel log (dmesg); power-cycle the host and judge it again",
        )


def _gpus(gpu: Facts, need: Facts) -> t.Iterator[Finding]:
    """What a driver that is already there says of the GPUs; a host without one is not at fault here."""
    yield from _passed_through(gpu)
    yield from _xids(gpu)
    known = profile_of(gpu, need)
    if gpu["smi"] is None or known is None:
        return
    answering = gpu["smi"]["gpus"]
    addresses = {entry["address"] for entry in answering}
    silent = [
        entry["address"]
        for entry in gpu["pci_gpus"]
        if entry["address"] not in addresses and entry["driver"] in OUR_DRIVERS
    ]
    if silent:
        yield Finding(
            "GPU-LOST",
            REFUSE,
            f"{len(answering)} of {len(gpu['pci_gpus'])} GPUs answer; {_some(silent)} on the PCI bus but not in nvidia-smi",
            "look for an Xid in the kernel log and power-cycle the host; if it returns, have the GPU replaced",
        )
    yield from _memory(answering, known)
    yield from _settings(answering)
    yield from _health(answering)
    yield from _links(gpu, need, known[1])


def _passed_through(gpu: Facts) -> t.Iterator[Finding]:
    bound = [
        f"{entry['address']} ({entry['driver']})" for entry in gpu["pci_gpus"] if entry["driver"] not in OUR_DRIVERS
    ]
    if bound:
        yield Finding(
            "GPU-LOST",
            REFUSE,
            f"bound to another driver: {_some(bound)}",
            "take the GPUs back from virtual machines and unbind that driver",
        )


def _xids(gpu: Facts) -> t.Iterator[Finding]:
    """One finding for each code of this boot: the fatal ones refuse."""
    by_code: dict[tuple[bool, str, int], list[Facts]] = {}
    for entry in gpu["xids"]:
        by_code.setdefault((not entry["fatal"], entry["kind"], entry["code"]), []).append(entry)
    for (harmless, kind, code), entries in sorted(by_code.items()):
        last = entries[-1]
        where = _some(sorted({entry["address"] for entry in entries}))
        times = f"{len(entries)} times, last" if len(entries) > 1 else "at"
        yield Finding(
            "GPU-XID",
            WARN if harmless else REFUSE,
            f"{'SXid' if kind == 'sxid' else 'Xid'} {code} ({last['name']}) on {where}, {times} {last['time'] or 'an unknown time'}",
            str(last["action"]),
        )


def _memory(answering: list[dict[str, t.Any]], known: tuple[str, dict[str, t.Any]]) -> t.Iterator[Finding]:
    name, profile = known
    wanted = profile["memory_mib"]
    other = [
        f"{entry['address']} has {entry['memory_mib']} MiB"
        for entry in answering
        if entry["memory_mib"] is not None and abs(entry["memory_mib"] - wanted) > MEMORY_TOLERANCE * wanted
    ]
    if other:
        yield Finding(
            "GPU-MEMORY",
            REFUSE,
            f"{_some(other)}, the profile {name} says {wanted}",
            "have the GPU replaced, or vouch for other hardware in fleet_hardware_profiles",
        )
    yield from _not_told(
        "GPU-MEMORY", "memory", [entry["address"] for entry in answering if entry["memory_mib"] is None]
    )


def _not_told(identifier: str, what: str, addresses: list[str]) -> t.Iterator[Finding]:
    if addresses:
        yield Finding(
            identifier,
            UNKNOWN,
            f"nvidia-smi does not tell the {what} of {_some(addresses)}",
            "look at nvidia-smi -q on the host; power-cycle it",
        )


def _settings(answering: list[dict[str, t.Any]]) -> t.Iterator[Finding]:
    mig = [entry["address"] for entry in answering if "Enabled" in (entry["mig"], entry.get("mig_pending"))]
    if mig:
        yield Finding(
            "GPU-MIG", REFUSE, f"MIG is on: {_some(mig)}", "stop what uses the GPU, then on the host: nvidia-smi -mig 0"
        )
    off = [entry["address"] for entry in answering if "Disabled" in (entry["ecc"], entry["ecc_pending"])]
    if off:
        yield Finding(
            "GPU-ECC",
            REFUSE,
            f"ECC is off, or will be after the next reboot: {_some(off)}",
            "on the host: nvidia-smi -e 1, then reboot it",
        )
    yield from _not_told("GPU-ECC", "ECC mode", [entry["address"] for entry in answering if entry["ecc"] is None])


def _health(answering: list[dict[str, t.Any]]) -> t.Iterator[Finding]:
    failed = [entry["address"] for entry in answering if entry["row_remap_failure"] == "Yes"]
    if failed:
        yield Finding("GPU-ROW-REMAP", REFUSE, f"a row could not be remapped: {_some(failed)}", "have the GPU replaced")
    pending = [entry["address"] for entry in answering if entry["row_remap_pending"] == "Yes"]
    if pending:
        yield Finding(
            "GPU-ROW-REMAP",
            REFUSE,
            f"a row waits to be remapped: {_some(pending)}",
            "reboot the host; it is remapped when the GPU is reset",
        )
    errors = [f"{entry['address']} {entry['ecc_uncorrectable']}" for entry in answering if entry["ecc_uncorrectable"]]
    if errors:
        yield Finding(
            "GPU-UNCORRECTABLE",
            REFUSE,
            f"uncorrectable memory errors since the driver was loaded: {_some(errors)}",
            "reboot the host and run dcgmi diag -r 3; if they return, have the GPU replaced",
        )
    recovery = [
        f"{entry['address']} {entry['recovery_action']}"
        for entry in answering
        if entry["recovery_action"] not in (None, "None")
    ]
    if recovery:
        yield Finding(
            "GPU-RECOVERY",
            REFUSE,
            f"the driver asks to recover GPUs: {_some(recovery)}",
            "do what it asks for; a reboot of the host covers all of it",
        )


def _links(gpu: Facts, need: Facts, profile: Facts) -> t.Iterator[Finding]:
    """NVLinks and fabric. Before the release's driver is loaded, the driver stage may mend what is down."""
    answering = gpu["smi"]["gpus"]
    current = _current(gpu, need)
    severity = REFUSE if current else WARN
    down = []
    for entry in answering:
        links = entry["nvlinks"]
        if links is not None and links["active"] < profile["nvlinks"]:
            named = f" (down: {', '.join(map(str, links['inactive']))})" if links["inactive"] else ""
            down.append(f"{entry['address']} {links['active']}{named}")
    if down:
        yield Finding(
            "NVLINK",
            severity,
            f"fewer than {profile['nvlinks']} NVLinks are active: {_some(down)}",
            "power-cycle the host; if a link stays down, have the board looked at"
            if current
            else "the driver stage reboots the host and looks again",
        )
    if not profile["nvswitches"]:
        return
    progress = [entry["address"] for entry in answering if entry["fabric_state"] in ("In Progress", "Not Started")]
    if progress:
        stopped = (
            ""
            if gpu["fabric_manager"]["active"] or not _told_by_programs(gpu)
            else "; nvidia-fabricmanager is not running"
        )
        yield Finding(
            "FABRIC",
            severity,
            f"the fabric is not complete: {_some(progress)}{stopped}",
            "on the host: systemctl restart nvidia-fabricmanager, and read its journal"
            if current
            else "the driver stage installs driver and fabric manager",
        )
    failed = [
        f"{entry['address']} {entry['fabric_status']}"
        for entry in answering
        if entry["fabric_state"] == "Completed" and entry["fabric_status"] not in (None, "Success")
    ]
    if failed:
        yield Finding(
            "FABRIC",
            REFUSE,
            f"the fabric failed: {_some(failed)}",
            "read the journal of nvidia-fabricmanager and power-cycle the host; if it returns, have the board looked at",
        )


def _peers(gpu: Facts) -> t.Iterator[Finding]:
    """What keeps GPUs and adapters from talking directly. It slows down a replica over several hosts, or hangs it, and touches no other."""
    redirecting = [f"{port['address']} ({', '.join(port['redirects'])})" for port in gpu["pcie"]["redirecting"]]
    if redirecting:
        yield Finding(
            "PCIE-ACS",
            WARN,
            f"switches above GPUs and adapters send what these send each other to the root complex: {_some(redirecting)}",
            "turn ACS off in the firmware (or IO virtualization with it), or by setpci after each boot",
        )
    if gpu["pcie"]["translated"]:
        yield Finding(
            "PCIE-IOMMU",
            WARN,
            f"an IOMMU translates the addresses of {_some(gpu['pcie']['translated'])}",
            "boot with iommu=pt on the kernel's command line, or turn IO virtualization off in the firmware",
        )


def _model(gpu: Facts, model: Facts, need: Facts) -> t.Iterator[Finding]:
    known = profile_of(gpu, need)
    count = known[1]["gpus"] if known else None
    for instance in need["instances"]:
        if instance["profile"] not in PROFILES:
            yield Finding(
                "MODEL-FIT",
                REFUSE,
                f"instance {instance['name']} names profile {instance['profile']}; known are {', '.join(PROFILES)}",
                "name one of them in fleet_instances",
            )
            continue
        try:
            _serving.arguments(instance)
        except _serving.SettingError as error:
            yield Finding(
                "MODEL-FIT", REFUSE, f"instance {instance['name']}: {error}", "write it so in fleet_instances"
            )
        absent = [str(number) for number in instance.get("gpus") or [] if count is not None and number >= count]
        if absent:
            yield Finding(
                "MODEL-FIT",
                REFUSE,
                f"instance {instance['name']} names GPU {_some(absent)} of a host that has {count}, numbered from 0",
                "name others in its field gpus",
            )
    if model.get("error") and not model["present"]:
        evidence, _arrow, remedy = model["error"].partition(" -> ")
        yield Finding("MODEL-SOURCE", REFUSE, evidence, remedy or "correct the release, or set fleet_hub_endpoint")
    for plan in plans(gpu, model, need):
        if not plan["fits"]:
            told = plan["fits"] is not None
            yield Finding(
                "MODEL-FIT",
                REFUSE if told else WARN,
                f"instance {plan['instance']}: {plan['reason']}",
                plan["remedy"] or "name another profile or other arguments in fleet_instances",
            )


def _disk(host: Facts, need: Facts) -> t.Iterator[Finding]:
    if host["trees"][need["model_path"]]["exists"]:
        return
    present = host["trees"][f"{need['model_path']}.partial"]["bytes"]
    missing = max(0, need["model_bytes"] - present) * (1 + DISK_MARGIN)
    filesystem = host["filesystems"][need["model_root"]]
    if filesystem["free_bytes"] < missing:
        yield Finding(
            "DISK",
            REFUSE,
            f"{need['model_root']} has {filesystem['free_bytes'] / GIB:.2f} GiB free, the model needs {missing / GIB:.2f} GiB with {DISK_MARGIN:.0%} to spare",
            f"free {(missing - filesystem['free_bytes']) / GIB:.2f} GiB or set fleet_model_root",
        )


def _ports(host: Facts, need: Facts) -> t.Iterator[Finding]:
    for instance in need["instances"]:
        listener = host["ports"].get(str(instance["port"]))
        if listener and listener["unit"] != _unit(instance):
            holder = (
                f"{listener['command'] or 'a hidden process'} (pid {listener['pid']}, {listener['unit'] or 'no unit'})"
            )
            yield Finding(
                "PORT",
                REFUSE,
                f"port {instance['port']} of instance {instance['name']} is held by {holder}",
                "stop it, or give the instance another port",
            )


def _busy(host: Facts, gpu: Facts, need: Facts) -> t.Iterator[Finding]:
    """GPU memory that others hold. Processes with vllm in their name or path are the instances'; memory without a process counts while none of them listens."""
    if gpu["smi"] is None:
        return
    foreign: list[str] = []
    ours = any(
        (host.get("ports", {}).get(str(instance["port"])) or {}).get("unit") == _unit(instance)
        for instance in need["instances"]
    )
    for entry in gpu["smi"]["gpus"]:
        others = [process for process in entry["processes"] if "vllm" not in (process["name"] or "").lower()]
        ours = ours or len(others) < len(entry["processes"])
        foreign += [
            f"{entry['address']} by {process['name'] or 'a hidden process'} (pid {process['pid']})"
            for process in others
        ]
    if not foreign and not ours:
        foreign = [
            f"{entry['address']} {entry['memory_used_mib']} MiB by nothing that can be seen"
            for entry in gpu["smi"]["gpus"]
            if (entry["memory_used_mib"] or 0) > IDLE_MEMORY_MIB
        ]
    if foreign:
        yield Finding(
            "GPU-BUSY", WARN, f"GPU memory is held: {_some(foreign)}", "stop what holds it before an instance starts"
        )


def _unit(instance: Facts) -> str:
    return f"vllm@{instance['name']}.service"


def _foreign(gpu: Facts) -> list[str]:
    """Traces of a driver that the driver stage would not have installed; helpers such as nvidia-prime have versions of their own and do not count."""
    packages = [
        f"{package['name']} {package['version']} ({'closed modules' if package['archive'] == 'nvidia' else package['archive']})"
        for package in gpu["packages"]
        if _dpkg.is_foreign(package)
    ]
    return (["NVIDIA's .run installer"] if gpu["runfile"] else []) + packages


def _version(gpu: Facts) -> str:
    """The driver's version as far as it is told: of the loaded module, else of what answers or is installed."""
    told = (
        gpu["module"]["loaded_version"],
        (gpu["smi"] or {}).get("driver_version"),
        gpu["module"]["installed_version"],
        gpu["userspace_version"],
    )
    return next((version for version in told if version), "")


def _current(gpu: Facts, need: Facts) -> bool:
    """Whether the release's driver is loaded already, so that the driver stage has nothing left to mend; without a release, whatever is there."""
    return not need["driver_version"] or _version(gpu) == need["driver_version"]


def _told_by_programs(gpu: Facts) -> bool:
    """Whether programs were asked what is installed and what runs: of a captured host only files are known."""
    return bool(gpu["packages"] or gpu["module"]["installed_version"] or gpu["fabric_manager"]["version"])


def _upstream(version: str) -> str:
    """580.173.02 of 580.173.02-1ubuntu1."""
    return version.rpartition(":")[2].partition("-")[0]


def _digits(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", _upstream(version)))


def _some(items: t.Sequence[str], most: int = 4) -> str:
    """The first few of a list, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def report(
    hostname: str, host: Facts, gpu: Facts, found: t.Sequence[Finding], need: Facts, planned: t.Sequence[Facts]
) -> str:
    """The lines an operator reads of one host: the verdict first, then the findings, warnings last."""
    order = (REFUSE, UNKNOWN, WARN)
    rows = sorted(found, key=lambda entry: order.index(entry.severity))
    return "\n".join([_headline(hostname, host, gpu, found, need, planned), *table(rows)])


def _headline(
    hostname: str, host: Facts, gpu: Facts, found: t.Sequence[Finding], need: Facts, planned: t.Sequence[Facts]
) -> str:
    known = profile_of(gpu, need)
    judged = verdict(found)
    if judged != FIT or known is None:
        return f"{hostname}  {'NOT FIT' if judged == NOT_FIT else 'COULD NOT TELL'}  profile {known[0] if known else 'unknown'}"
    version = _version(gpu)
    parts = [f"{len(gpu['pci_gpus'])} x {known[1]['product']}", f"{len(gpu['pci_nvswitches'])} NVSwitches"]
    if host:
        parts += [
            f"{host['memory_bytes'] / GIB:.0f} GiB RAM",
            " ".join(host["os"].values()),
            f"kernel {host['kernel']}",
        ]
    parts.append(f"driver {version}" if version else "no driver yet")
    room = "".join(
        f"; {plan['instance']}: {plan['kv_tokens']:,} tokens of KV cache" for plan in planned if plan["fits"]
    )
    return f"{hostname}  fit  {', '.join(parts)}{room}"


def table(rows: t.Sequence[Finding]) -> t.Iterator[str]:
    """A line a finding, evidence and remedy in columns; what is too long for that goes on in further lines, its words in their order."""
    marks = {REFUSE: "", UNKNOWN: "not told: ", WARN: "warning: "}
    cells = [(entry.id, marks[entry.severity] + entry.evidence, entry.remedy) for entry in rows]
    first = max((len(identifier) for identifier, _evidence, _remedy in cells), default=0)
    second = max(
        (len(evidence) for _identifier, evidence, _remedy in cells if _column_fits(cells, first, len(evidence))),
        default=0,
    )
    for identifier, evidence, remedy in cells:
        head = f"  {identifier:<{first}}  "
        aligned, close = f"{head}{evidence:<{second}}  -> {remedy}", f"{head}{evidence}  -> {remedy}"
        line = aligned if len(aligned) <= WIDTH else close
        if len(line) <= WIDTH:
            yield line
            continue
        indent = " " * (first + 4)
        yield from textwrap.wrap(
            evidence,
            WIDTH,
            initial_indent=head,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        yield from textwrap.wrap(
            f"-> {remedy}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}   ", break_on_hyphens=False
        )


def _column_fits(cells: t.Sequence[tuple[str, str, str]], first: int, second: int) -> bool:
    """Whether evidence may have a column of this width: no remedy of what stands in it is pushed over the edge."""
    return all(
        first + second + len(remedy) + 9 <= WIDTH for _identifier, evidence, remedy in cells if len(evidence) <= second
    )
