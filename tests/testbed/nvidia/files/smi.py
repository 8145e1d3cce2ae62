# SPDX-License-Identifier: Apache-2.0
"""nvidia-smi: what a role may ask of it, in the words and with the exit codes of the real one (driver 580)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

from .common import (
    FABRIC_MANAGER,
    PERSISTENCED,
    ROOT,
    answering_gpus,
    bus_id,
    hardware,
    is_running,
    library_version,
    model_of,
    module_version,
)

CUDA = {"580": "13.0", "595": "13.2"}
HERE = Path(__file__).parent
LINK_SPEED = "26.562 GB/s"
NO_DRIVER = """\
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.
"""
UNSUPPORTED = "ERROR: Option {} is not recognized. Please run 'nvidia-smi -h'.\n"
SMI_LOG_HEADER = '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">\n'
LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks"""
PERSISTENCE_SWITCH = ROOT / "run/testbed/persistence-mode"
RESERVED_MIB = 615  # reported as 616: each figure is rounded by itself
IDLE_CLOCK_MHZ = 345
#: Reasons for a clock below the highest, with their bits (nvml.h).
REASONS = {
    "gpu_idle": 0x01,
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}


class Refusal(Exception):  # noqa: N818 - what nvidia-smi answers, not an error of this program
    """What nvidia-smi prints, and the status it ends with, where it cannot answer."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Field(NamedTuple):
    """A line of fields.txt."""

    name: str
    unit: str
    source: str


def main(version: str) -> int:
    """nvidia-smi; `version` is the one of the program, the NVML library's is that of the library installed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        _run(sys.argv[1:], version)
    except Refusal as refusal:
        print(refusal)
        return refusal.status
    return 0


def _run(arguments: list[str], version: str) -> None:
    driver = module_version()
    if driver is None:
        raise Refusal(NO_DRIVER, 9)
    library = library_version() or version
    if library != driver:
        short = ".".join(library.split(".")[:2])
        raise Refusal(f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {short}", 18)
    while any(gpu["hangs"] for gpu in hardware()["gpus"]):  # until somebody ends it, or the hardware is mended
        time.sleep(1)
    options = _options(arguments)
    wanted = options.pop("-i", None)
    gpus = _selected(answering_gpus(), wanted)
    command = next((name for name in options if name in COMMANDS), None)
    unknown = [name for name in options if name not in COMMANDS and name not in MODIFIERS]
    if unknown or (command is None and options):
        raise Refusal(UNSUPPORTED.format((unknown or list(options))[0]), 255)
    if not gpus and command != "--version":
        raise Refusal("No devices were found", 6)
    COMMANDS.get(command or "", _print_summary)(gpus, options)


def _options(arguments: list[str]) -> dict[str, str]:
    """Options and subcommands by their first name, with their values."""
    aliases = {"--id": "-i", "--list-gpus": "-L", "--persistence-mode": "-pm", "--query": "-q", "--xml-format": "-x"}
    with_value = {"-i", "-pm", "--query-gpu", "--query-compute-apps", "--format"}
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, has_value, value = rest.pop(0).partition("=")
        name = aliases.get(name, name)
        if name in {"topo", "nvlink"}:
            # The options of a subcommand are its own, but for the choice of GPUs.
            name = f"{name} {rest.pop(0) if rest else ''}".strip()
        elif name in with_value and not has_value:
            if not rest:
                raise Refusal(UNSUPPORTED.format(name), 255)
            value = rest.pop(0)
        options[name] = value
    return options


def _selected(gpus: list[dict[str, Any]], wanted: str | None) -> list[dict[str, Any]]:
    if wanted is None:
        return gpus
    names = {name.strip().lower() for name in wanted.split(",")}
    return [
        gpu
        for number, gpu in enumerate(gpus)
        if names & {str(number), gpu["uuid"].lower(), gpu["address"], bus_id(gpu["address"]).lower(), gpu["serial"]}
    ]


# What a GPU says of itself


def _persistent() -> bool:
    return is_running(PERSISTENCED) or PERSISTENCE_SWITCH.exists()


def _fabric(host: dict[str, Any]) -> dict[str, str]:
    """State of the fabric: N/A without NVSwitches, in progress until the fabric manager has done its work."""
    if not host["nvswitches"]:
        return {}
    if host["fabric"]:
        return {"fabric/state": host["fabric"]["state"], "fabric/status": host["fabric"]["status"]}
    if not is_running(FABRIC_MANAGER):
        return {"fabric/state": "In Progress", "fabric/status": "N/A"}
    return {
        "fabric/state": "Completed",
        "fabric/status": "Success",
        "fabric/cliqueId": "0",
        "fabric/clusterUuid": "00000000-0000-0000-0000-000000000000",
    }


def _onoff(on: bool) -> str:
    return "Enabled" if on else "Disabled"


def _reasons(gpu: dict[str, Any]) -> set[str]:
    """Why its clock is below the highest. A thermal slowdown and a power brake by the hardware are hardware slowdowns as well."""
    named = {"hw_power_brake_slowdown"} if gpu["power_brake"] else set()
    named |= {gpu["throttle"]} if gpu["throttle"] else set()
    if any(name.startswith("hw_") for name in named):
        named |= {"hw_slowdown"}
    return named or (set() if gpu["clock_mhz"] else {"gpu_idle"})


def _facts(gpu: dict[str, Any], host: dict[str, Any]) -> dict[str, str]:
    """What this GPU differs in from the one in gpu.xml: path -> text."""
    model, address = model_of(gpu), gpu["address"]
    vendor_device, vendor_subsystem = (
        "".join(reversed(model[key].upper().split(":"))) for key in ("pci_id", "subsystem_id")
    )
    domain, bus, device = bus_id(address)[4:].partition(".")[0].split(":")
    used = gpu["memory_used_mib"]
    power = f"{model['power_limit_w']:.2f} W"
    clock = f"{gpu['clock_mhz'] or IDLE_CLOCK_MHZ} MHz"
    reasons = _reasons(gpu)
    generation, errors = str(model["pcie_generation"]), str(gpu["uncorrectable_errors"])
    return _fabric(host) | {
        "product_name": model["model"],
        "product_architecture": model["architecture"],
        "persistence_mode": _onoff(_persistent()),
        "mig_mode/current_mig": _onoff(gpu["mig"]),
        "mig_mode/pending_mig": _onoff(gpu["mig"]),
        "serial": gpu["serial"],
        "uuid": gpu["uuid"],
        "minor_number": str(gpu["index"]),
        "board_id": f"0x{bus.lower()}00",
        "platformInfo/module_id": str(gpu["index"] + 1),
        "gpu_virtualization_mode/virtualization_mode": "None",
        "gsp_firmware_version": module_version() or "",
        "pci/pci_bus": bus,
        "pci/pci_device": device,
        "pci/pci_domain": domain,
        "pci/pci_device_id": vendor_device,
        "pci/pci_bus_id": bus_id(address),
        "pci/pci_sub_system_id": vendor_subsystem,
        "pci/pci_gpu_link_info/link_widths/max_link_width": f"{model['pcie_width']}x",
        "pci/pci_gpu_link_info/link_widths/current_link_width": f"{gpu['pcie_width']}x",
        **{f"pci/pci_gpu_link_info/pcie_gen/{key}": generation for key in GENERATIONS},
        "gpu_recovery_action": "Reset" if gpu["row_remap_pending"] else "None",
        "fb_memory_usage/total": f"{model['memory_mib']} MiB",
        "fb_memory_usage/used": f"{used} MiB",
        "fb_memory_usage/free": f"{model['memory_mib'] - RESERVED_MIB - used} MiB",
        "ecc_mode/current_ecc": _onoff(gpu["ecc"]),
        "ecc_mode/pending_ecc": _onoff(gpu["ecc"]),
        "ecc_errors/volatile/dram_uncorrectable": errors,
        "ecc_errors/aggregate/dram_uncorrectable": errors,
        "remapped_rows/remapped_row_unc": errors,
        "remapped_rows/remapped_row_pending": "Yes" if gpu["row_remap_pending"] else "No",
        "remapped_rows/remapped_row_failure": "Yes" if gpu["row_remap_failed"] else "No",
        "clocks/graphics_clock": clock,
        "clocks/sm_clock": clock,
        **{
            f"clocks_event_reasons/clocks_event_reason_{name}": "Active" if name in reasons else "Not Active"
            for name in REASONS
        },
        **{f"gpu_power_readings/{key}_power_limit": power for key in ("current", "requested", "default", "max")},
    }


GENERATIONS = ("max_link_gen", "current_link_gen", "device_current_link_gen", "max_device_link_gen")


def _holders(gpu: dict[str, Any]) -> list[tuple[int, str]]:
    """Ids and names of the processes that hold a GPU's memory, as far as the host shows them."""
    found = []
    for folder in (ROOT / "proc").iterdir() if gpu["memory_used_mib"] and gpu["held_by"] else []:
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0") if folder.name.isdigit() else []
        except OSError:  # it has ended meanwhile
            continue
        if gpu["held_by"] in " ".join(command) and int(folder.name) != os.getpid():
            found.append((int(folder.name), command[0]))
    return found


def _unseen(gpu: dict[str, Any]) -> tuple[int, str]:
    """A holder that the host's own process list does not have."""
    return 4_000_000 + gpu["index"], "VLLM::EngineCore"


def _element(gpu: dict[str, Any], host: dict[str, Any]) -> ET.Element:
    """The XML of one GPU."""
    element = ET.parse(HERE / "gpu.xml").getroot()  # noqa: S314 - our own file
    element.set("id", bus_id(gpu["address"]))
    for path, text in _facts(gpu, host).items():
        node = element.find(path)
        assert node is not None, path
        node.text = text
    processes = element.find("processes")
    assert processes is not None
    for pid, name in _holders(gpu):
        process = ET.SubElement(processes, "process_info")
        facts = {"pid": str(pid), "type": "C", "process_name": name, "used_memory": f"{gpu['memory_used_mib']} MiB"}
        for key, text in facts.items():
            ET.SubElement(process, key).text = text
    return element


def _cuda() -> str:
    return CUDA.get((module_version() or "").partition(".")[0], "13.0")


# The commands


def _print_xml(gpus: list[dict[str, Any]], options: dict[str, str]) -> None:
    if "-x" not in options:
        raise Refusal("this nvidia-smi of the test bed answers -q with -x only", 2)
    log = ET.Element("nvidia_smi_log")
    head = {
        "timestamp": time.strftime("%a %b %e %H:%M:%S %Y"),
        "driver_version": module_version(),
        "cuda_version": _cuda(),
        "attached_gpus": str(len(answering_gpus())),
    }
    for name, text in head.items():
        ET.SubElement(log, name).text = text
    host = hardware()
    log.extend(_element(gpu, host) for gpu in gpus)
    ET.indent(log, "\t")
    print(SMI_LOG_HEADER + ET.tostring(log, encoding="unicode", short_empty_elements=False))


def _print_list(gpus: list[dict[str, Any]], _options: dict[str, str]) -> None:
    for number, gpu in enumerate(gpus):
        print(f"GPU {number}: {model_of(gpu)['model']} (UUID: {gpu['uuid']})")


def _print_version(_gpus: list[dict[str, Any]], _options: dict[str, str]) -> None:
    driver = module_version() or ""
    for label, text in {
        "NVIDIA-SMI version  ": driver,
        "NVML version        ": ".".join(driver.split(".")[:2]),
        "DRIVER version      ": driver,
        "CUDA Version        ": _cuda(),
    }.items():
        print(f"{label}: {text}")


def _fields() -> dict[str, Field]:
    """Every name that --query-gpu knows."""
    known: dict[str, Field] = {}
    for line in (HERE / "fields.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, unit, source, aliases = line.split(" | ")
        known |= dict.fromkeys([name, *aliases.split(",")], Field(name, "" if unit == "-" else unit, source))
    return known


def _wanted(query: str, known: dict[str, Field]) -> list[Field]:
    names = [name.strip() for name in query.split(",")]
    for name in names:
        if name not in known:
            raise Refusal(f'Field "{name}" is not a valid field to query.\n', 2)
    return [known[name] for name in names]


def _format(options: dict[str, str]) -> set[str]:
    modifiers = set(options.get("--format", "csv").split(","))
    if "csv" not in modifiers or modifiers - {"csv", "noheader", "nounits"}:
        raise Refusal("Format modifier is not recognized.", 2)
    return modifiers


def _print_csv(fields: list[Field], rows: list[list[str]], modifiers: set[str]) -> None:
    if "noheader" not in modifiers:
        print(", ".join(f"{field.name} [{field.unit}]" if field.unit else field.name for field in fields))
    for row in rows:
        values = zip(row, fields, strict=True)
        print(
            ", ".join(
                value.removesuffix(f" {field.unit}") if "nounits" in modifiers and field.unit else value
                for value, field in values
            )
        )


def _value(field: Field, number: int, gpu: dict[str, Any], element: ET.Element) -> str:
    """What a field says of a GPU, with its unit."""
    if field.source.startswith("="):
        return field.source[1:]
    if field.source.startswith("@"):
        return COMPUTED[field.source[1:]](number, gpu)
    path, _, cut = field.source.partition(" ")
    texts = [element.findtext(part) or "" for part in path.split("+")]
    text = str(sum(int(part) for part in texts)) if len(texts) > 1 else texts[0]
    if (text == "N/A" or text.startswith("Requested ")) and not path.startswith("fabric"):
        return f"[{text}]"
    return {"hex": f"0x{text}", "lanes": text.removesuffix("x"), "first": text.split(" ")[0]}.get(cut, text)


COMPUTED: dict[str, Callable[[int, dict[str, Any]], str]] = {
    "timestamp": lambda _number, _gpu: time.strftime("%Y/%m/%d %H:%M:%S.000"),
    "driver_version": lambda _number, _gpu: module_version() or "",
    "count": lambda _number, _gpu: str(len(answering_gpus())),
    "index": lambda number, _gpu: str(number),
    "compute_cap": lambda _number, _gpu: str(hardware()["gpu"]["compute_capability"]),
    "reasons": lambda _number, gpu: f"{sum(REASONS[name] for name in _reasons(gpu)):#018x}",
}


def _print_query(gpus: list[dict[str, Any]], options: dict[str, str]) -> None:
    fields, modifiers, host = _wanted(options["--query-gpu"], _fields()), _format(options), hardware()
    numbers = {gpu["uuid"]: number for number, gpu in enumerate(answering_gpus())}
    rows = []
    for gpu in gpus:
        number = numbers[gpu["uuid"]]
        element = _element(gpu, host)
        rows.append([_value(field, number, gpu, element) for field in fields])
    _print_csv(fields, rows, modifiers)


def _print_processes(gpus: list[dict[str, Any]], options: dict[str, str]) -> None:
    names = {
        "timestamp": "",
        "gpu_name": "",
        "gpu_bus_id": "",
        "gpu_serial": "",
        "gpu_uuid": "",
        "pid": "",
        "process_name": "",
    }
    known = {name: Field(name, "", name) for name in names} | {"name": Field("process_name", "", "process_name")}
    known |= dict.fromkeys(("used_gpu_memory", "used_memory"), Field("used_gpu_memory", "MiB", "used"))
    fields = _wanted(options["--query-compute-apps"], known)
    rows = [
        [
            {
                "timestamp": COMPUTED["timestamp"](0, gpu),
                "gpu_name": model_of(gpu)["model"],
                "gpu_bus_id": bus_id(gpu["address"]),
                "gpu_serial": gpu["serial"],
                "gpu_uuid": gpu["uuid"],
                "pid": str(pid),
                "process_name": name,
                "used": f"{gpu['memory_used_mib']} MiB",
            }[field.source]
            for field in fields
        ]
        for gpu in gpus
        if gpu["memory_used_mib"]
        for pid, name in _holders(gpu) or [_unseen(gpu)]
    ]
    _print_csv(fields, rows, _format(options))


def _set_persistence(gpus: list[dict[str, Any]], options: dict[str, str]) -> None:
    on = options["-pm"] in {"1", "ENABLED"}
    if on:
        PERSISTENCE_SWITCH.parent.mkdir(parents=True, exist_ok=True)
        PERSISTENCE_SWITCH.touch()
    else:
        PERSISTENCE_SWITCH.unlink(missing_ok=True)
    for gpu in gpus:
        print(f"{'Enabled' if on else 'Disabled'} persistence mode for GPU {bus_id(gpu['address'])}.")
    print("All done.")


def _connection(one: dict[str, Any], other: dict[str, Any], host: dict[str, Any]) -> str:
    """How two GPUs reach each other, as topo -m writes it."""
    if one is other:
        return " X "
    pair = {one["address"], other["address"]}
    links = host["gpu"]["nvlinks"] - max(len(one["nvlinks_down"]), len(other["nvlinks_down"]))
    if any(pair == set(phb) for phb in host["phb_pairs"]):
        return "PHB"
    if host["nvswitches"] and links > 0:
        return f"NV{links}"
    return "NODE" if one["numa_node"] == other["numa_node"] else "SYS"


def _print_topology(gpus: list[dict[str, Any]], _options: dict[str, str]) -> None:
    host = hardware()
    names = [f"GPU{number}" for number in range(len(gpus))]
    print("\t\x1b[4m" + "\t".join([*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]) + "\x1b[0m")
    for name, gpu in zip(names, gpus, strict=True):
        cells = [_connection(gpu, other, host) for other in gpus]
        node = gpu["numa_node"]
        print("\t".join([name, *cells, host["cpus"][str(node)], str(node), "", "N/A"]))
    print(LEGEND)


def _print_links(gpus: list[dict[str, Any]], _options: dict[str, str]) -> None:
    model = hardware()["gpu"]
    for number, gpu in enumerate(gpus if model["nvlinks"] else []):
        print(f"GPU {number}: {model['model']} (UUID: {gpu['uuid']})")
        for link in range(model["nvlinks"]):
            print(f"\t Link {link}: {'<inactive>' if link in gpu['nvlinks_down'] else LINK_SPEED}")


def _print_link_errors(gpus: list[dict[str, Any]], _options: dict[str, str]) -> None:
    model = hardware()["gpu"]
    for number, gpu in enumerate(gpus if model["nvlinks"] else []):
        print(f"GPU {number}: {model['model']} (UUID: {gpu['uuid']})")
        for link in set(range(model["nvlinks"])) - set(gpu["nvlinks_down"]):
            for kind in ("Replay", "Recovery", "CRC"):
                print(f"\t Link {link}: {kind} Errors: 0")


def _print_summary(gpus: list[dict[str, Any]], _options: dict[str, str]) -> None:
    driver, host = module_version() or "", hardware()
    heavy = "+-----------------------------------------+------------------------+----------------------+"
    wide = "+" + "-" * 89 + "+"
    print(time.strftime("%a %b %e %H:%M:%S %Y       "))
    print(wide)
    print(f"| NVIDIA-SMI {driver:<22} Driver Version: {driver:<14} CUDA Version: {_cuda():<8} |")
    print(heavy)
    print("| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |")
    print("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |")
    print("|                                         |                        |               MIG M. |")
    print("|=========================================+========================+======================|")
    persistence = "On" if _persistent() else "Off"
    for number, gpu in enumerate(gpus):
        element = _element(gpu, host)
        errors = element.findtext("ecc_errors/volatile/dram_uncorrectable") if gpu["ecc"] else "Off"
        model = model_of(gpu)
        limit, total = model["power_limit_w"], model["memory_mib"]
        memory = f"{gpu['memory_used_mib']}MiB / {total}MiB"
        print(
            f"| {number:>3}  {model['model']:<26} {persistence:>6}  |   {bus_id(gpu['address'])} Off | {errors:>20} |"
        )
        print(f"| N/A   40C    P0            {82:>3}W / {limit:>4}W | {memory:>22} | {'0%':>7} {'Default':>12} |")
        print(f"| {'':<39} | {'':<22} | {_onoff(gpu['mig']):>20} |")
        print(heavy)
    _print_process_table(gpus)


def _print_process_table(gpus: list[dict[str, Any]]) -> None:
    wide = "+" + "-" * 89 + "+"
    print()
    print(wide)
    print("| Processes:                                                                              |")
    print("|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |")
    print("|        ID   ID                                                               Usage      |")
    print("|=========================================================================================|")
    held = [
        (number, gpu, pid, name)
        for number, gpu in enumerate(gpus)
        if gpu["memory_used_mib"]
        for pid, name in _holders(gpu) or [_unseen(gpu)]
    ]
    for number, gpu, pid, name in held:
        memory = f"{gpu['memory_used_mib']}MiB"
        print(f"| {number:>4}   N/A  N/A         {pid:>7}      C   {name[-34:]:<34} {memory:>11} |")
    if not held:
        print(f"| {' No running processes found':<87} |")
    print(wide)


MODIFIERS = {"-x", "--format"}
COMMANDS: dict[str, Callable[[list[dict[str, Any]], dict[str, str]], None]] = {
    "-q": _print_xml,
    "-L": _print_list,
    "-pm": _set_persistence,
    "--version": _print_version,
    "--query-gpu": _print_query,
    "--query-compute-apps": _print_processes,
    "topo -m": _print_topology,
    "topo --matrix": _print_topology,
    "nvlink -s": _print_links,
    "nvlink --status": _print_links,
    "nvlink -e": _print_link_errors,
    "nvlink --errorcounters": _print_link_errors,
}
