# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi prints: the XML of -q -x, the matrix of topo -m, the links of nvlink --status.

Nothing here runs a program. A field that is absent or says N/A is None, whichever field it is.
"""

from __future__ import annotations

import re
import typing as t
from xml.etree import ElementTree

#: Texts by which nvidia-smi says that it has nothing to say.
_NOTHING = {"", "N/A", "[N/A]", "Unknown Error", "Requested functionality has been deprecated"}
#: Of the fabric an unknown error is an answer: it has failed, and nobody knows why.
_NO_STATUS = _NOTHING - {"Unknown Error"}
#: Reasons for a low clock by their element without its prefix; up to driver 525 the prefix was clocks_throttle_reason_.
_REASON = re.compile(r"clocks_(?:event|throttle)_reason_(\w+)")


def parse(document: str) -> dict[str, t.Any]:
    """What ``nvidia-smi -q -x`` printed: ``{driver_version, cuda_version, gpus: [...]}``.

    Raises ValueError where the text is no such document.
    """
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 (the driver's own program printed it)
    except ElementTree.ParseError as error:
        raise ValueError(f"nvidia-smi did not print XML: {error}") from error
    if root.tag != "nvidia_smi_log":
        raise ValueError(f"nvidia-smi printed <{root.tag}> where <nvidia_smi_log> was expected")
    return {
        "driver_version": _field(root, "driver_version"),
        "cuda_version": _field(root, "cuda_version"),
        "gpus": [_gpu(gpu) for gpu in root.iter("gpu")],
    }


def parse_topology(matrix: str) -> list[list[str]]:
    """Each pair of GPUs of ``nvidia-smi topo -m`` with the name of their connection, such as ["GPU0", "GPU1", "NV18"]."""
    lines = [line.split() for line in re.sub(r"\x1b\[\d*m", "", matrix).splitlines()]
    header = next((line for line in lines if line and line[0] == "GPU0"), [])
    columns = [name for name in header if re.fullmatch(r"GPU\d+", name)]
    rows = {line[0]: line[1:] for line in lines if line and line[0] in columns and line is not header}
    return [
        [first, second, rows[first][columns.index(second)]]
        for number, first in enumerate(columns)
        for second in columns[number + 1 :]
        if len(rows.get(first, [])) >= len(columns)
    ]


def parse_nvlinks(text: str) -> dict[str, dict[str, t.Any]]:
    """``{active: number of links, inactive: [link numbers]}`` of each GPU of ``nvidia-smi nvlink --status``, by UUID.

    A link that is up has its speed behind it, one that is not says so in words ("<inactive>", "inActive").
    """
    gpus: dict[str, dict[str, t.Any]] = {}
    links: dict[str, t.Any] = {}
    for line in text.splitlines():
        if gpu := re.match(r"GPU \d+: .*\(UUID: (\S+?)\)", line):
            links = gpus.setdefault(gpu[1], {"active": 0, "inactive": []})
        elif links and (link := re.match(r"\s+Link (\d+): (.*)", line)):
            if re.match(r"[\d.]+ [GM]B/s", link[2]):
                links["active"] += 1
            else:
                links["inactive"].append(int(link[1]))
    return gpus


def pci_gpus(smi: dict[str, t.Any]) -> list[dict[str, t.Any]]:
    """The GPUs as sysfs would show them, for a capture without one: what answers is bound to the driver, its NUMA node is not known."""
    return [
        {
            "address": gpu["address"],
            "device": gpu["device"] or "",
            "numa_node": None,
            "link_width": gpu["pcie_width"],
            "link_width_max": gpu["pcie_width_max"],
            "driver": "nvidia",
        }
        for gpu in smi["gpus"]
    ]


def _gpu(gpu: ElementTree.Element) -> dict[str, t.Any]:
    volatile, aggregate = (_uncorrectable(gpu.find(f"ecc_errors/{kind}")) for kind in ("volatile", "aggregate"))
    return {
        "address": _short_address(gpu.get("id") or _field(gpu, "pci/pci_bus_id") or ""),
        # The XML has device and vendor in one number: 232C10DE.
        "device": ((_field(gpu, "pci/pci_device_id") or "").lower().removeprefix("0x")[:4]) or None,
        "product": _field(gpu, "product_name"),
        "uuid": _field(gpu, "uuid"),
        "serial": _field(gpu, "serial"),
        "memory_mib": _integer(_field(gpu, "fb_memory_usage/total")),
        "memory_used_mib": _integer(_field(gpu, "fb_memory_usage/used")),
        "ecc": _field(gpu, "ecc_mode/current_ecc"),
        "ecc_pending": _field(gpu, "ecc_mode/pending_ecc"),
        "ecc_uncorrectable": volatile,
        "ecc_uncorrectable_aggregate": aggregate,
        "mig": _field(gpu, "mig_mode/current_mig"),
        "persistence": _field(gpu, "persistence_mode"),
        "row_remap_pending": _field(gpu, "remapped_rows/remapped_row_pending"),
        "row_remap_failure": _field(gpu, "remapped_rows/remapped_row_failure"),
        "recovery_action": _field(gpu, "gpu_recovery_action"),
        "pcie_width": _integer(_field(gpu, "pci/pci_gpu_link_info/link_widths/current_link_width")),
        "pcie_width_max": _integer(_field(gpu, "pci/pci_gpu_link_info/link_widths/max_link_width")),
        "throttle_reasons": _throttle_reasons(gpu),
        "fabric_state": _field(gpu, "fabric/state"),
        "fabric_status": _field(gpu, "fabric/status", _NO_STATUS),
        "processes": [_process(process) for process in gpu.iter("process_info")],
        "nvlinks": None,
    }


def _uncorrectable(counters: ElementTree.Element | None) -> int | None:
    """All uncorrectable errors of a block of counters added up; None where it names none."""
    counts = (
        [_integer((entry.text or "").strip()) for entry in counters if "uncorrectable" in entry.tag]
        if counters is not None
        else []
    )
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _throttle_reasons(gpu: ElementTree.Element) -> list[str]:
    """Why the clock is below its highest now, such as hw_power_brake_slowdown; an idle GPU says gpu_idle."""
    reasons: list[str] = []
    for block in ("clocks_event_reasons", "clocks_throttle_reasons"):
        for entry in gpu.findall(f"{block}/*"):
            name = _REASON.fullmatch(entry.tag)
            if name and (entry.text or "").strip() == "Active":
                reasons.append(name[1])
    return reasons


def _process(process: ElementTree.Element) -> dict[str, t.Any]:
    return {
        "pid": _integer(_field(process, "pid")),
        "name": _field(process, "process_name"),
        "memory_mib": _integer(_field(process, "used_memory")),
    }


def _field(element: ElementTree.Element, path: str, nothing: t.Container[str] = frozenset(_NOTHING)) -> str | None:
    text = (element.findtext(path) or "").strip()
    return None if text in nothing else text


def _integer(text: str | None) -> int | None:
    found = re.match(r"-?\d+", text or "")
    return int(found.group()) if found else None


def _short_address(address: str) -> str:
    """``00000000:5D:00.0`` as nvidia-smi writes it, ``0000:5d:00.0`` as sysfs does."""
    domain, separator, rest = address.partition(":")
    return f"{domain[-4:]}{separator}{rest}".lower()
