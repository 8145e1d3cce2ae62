# SPDX-License-Identifier: Apache-2.0
"""DCGM: nv-hostengine, and a dcgmi that answers `discovery -l` and `diag -r 1` to `diag -r 4`."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

from .common import (
    HOST_ENGINE,
    PERSISTENCED,
    answering_gpus,
    bus_id,
    hardware,
    is_running,
    library_version,
    module_version,
    serve,
)

UNREACHABLE = """\
Error: unable to establish a connection to the specified host: localhost
Error: Unable to connect to host engine. Host engine connection invalid/disconnected."""
NVVS_ERROR = 226
RULE = "+--------+----------------------------------------------------------------------+"
DIAG_RULE = "+---------------------------+------------------------------------------------+"


def host_engine(version: str) -> int:
    """nv-hostengine: stay in the foreground, as `-n` asks of it."""
    if {"-v", "--version"} & set(sys.argv[1:]):
        print(f"Version : {version}")
        return 0
    print(f"Started host engine version {version} using port number: 5555", flush=True)
    serve(HOST_ENGINE)
    return 0


def main(version: str) -> int:
    """dcgmi."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-v"], ["--version"]):
        print(f"\ndcgmi  version: {version}\n")
        return 0
    if not is_running(HOST_ENGINE):
        print(UNREACHABLE, file=sys.stderr)
        return 255
    if arguments == ["discovery", "-l"]:
        _discover()
        return 0
    asked = re.fullmatch(r"diag (?:-r |--run[= ])([1-4])( -j| --json)?", " ".join(arguments))
    if asked:
        return _diagnose(version, int(asked[1]), as_json=bool(asked[2]))
    print(f"dcgmi: this dcgmi of the test bed does not know {' '.join(arguments)!r}", file=sys.stderr)
    return 1


def _reachable() -> list[dict[str, Any]]:
    return answering_gpus() if module_version() and module_version() == library_version() else []


def _discover() -> None:
    gpus = _reachable()
    model = hardware()["gpu"]["model"]
    print(f"{len(gpus)} GPU{'s' * (len(gpus) != 1)} found.")
    print(RULE, f"| GPU ID | {'Device Information':<68} |", RULE, sep="\n")
    for number, gpu in enumerate(gpus):
        facts = [f"Name: {model}", f"PCI Bus ID: {bus_id(gpu['address'])}", f"Device UUID: {gpu['uuid']}"]
        for label, fact in zip([str(number), "", ""], facts, strict=True):
            print(f"| {label:<6} | {fact:<68} |")
        print(RULE)
    switches = hardware()["nvswitches"] if gpus else {}
    print(f"{len(switches)} NvSwitch{'es' * (len(switches) != 1)} found.")
    print(
        "+-----------+",
        "| Switch ID |",
        "+-----------+",
        *(f"| {len(gpus) + n:<9} |" for n in range(len(switches))),
        sep="\n",
    )
    print("+-----------+")


def _findings(gpu: dict[str, Any], level: int) -> list[str]:
    """What a level finds wrong with a GPU."""
    number, described = gpu["index"], hardware()["dcgm"]
    findings = [described["failure"]] if number == 0 and described["failure"] and level >= described["level"] else []
    if not is_running(PERSISTENCED):
        findings.append(f"Persistence Mode: Persistence mode for GPU {number} is disabled.")
    if gpu["row_remap_pending"]:
        findings.append(
            f"Page Retirement/Row Remap: GPU {number} has uncorrectable memory errors and row remappings are pending."
        )
    if gpu["row_remap_failed"]:
        findings.append(f"Page Retirement/Row Remap: GPU {number} had a row remap failure.")
    return findings


def _diagnose(version: str, level: int, *, as_json: bool) -> int:
    while (
        hardware()["dcgm"]["hangs"] and level >= hardware()["dcgm"]["level"]
    ):  # until somebody ends it, or it is mended
        time.sleep(1)
    gpus = _reachable()
    if not gpus:
        print(
            "Error: Unable to run diagnostic for group. Return: (-6) Feature not supported: no GPUs found.",
            file=sys.stderr,
        )
        return NVVS_ERROR
    findings = {number: _findings(gpu, level) for number, gpu in enumerate(gpus)}
    failed = any(findings.values())
    if as_json:
        _print_json(version, findings, failed=failed)
    else:
        _print_table(version, findings, failed=failed)
    return NVVS_ERROR if failed else 0


def _verdict(*, failed: bool) -> str:
    return "Fail" if failed else "Pass"


def _print_json(version: str, findings: dict[int, list[str]], *, failed: bool) -> None:
    results = [
        {"entity_group": "GPU", "entity_group_id": 1, "entity_id": number, "status": _verdict(failed=bool(found))}
        | (
            {
                "warnings": [
                    {"error_category": 8, "error_id": 29, "error_severity": 5, "warning": text} for text in found
                ]
            }
            if found
            else {}
        )
        for number, found in findings.items()
    ]
    software = {"name": "software", "results": results, "test_summary": {"status": _verdict(failed=failed)}}
    metadata = {"DCGM Version": version, "Driver Version Detected": module_version()}
    document = {
        "DCGM Diagnostic": {"test_categories": [{"category": "Deployment", "tests": [software]}]},
        "metadata": metadata,
    }
    print(json.dumps(document, indent=1))


def _print_table(version: str, findings: dict[int, list[str]], *, failed: bool) -> None:
    def row(label: str, value: str) -> None:
        for start in range(0, max(len(value), 1), 46):
            print(f"| {label if start == 0 else '':<25} | {value[start : start + 46]:<46} |")

    device = hardware()["gpu"]["pci_id"].partition(":")[2]
    print("Successfully ran diagnostic for group.")
    print(DIAG_RULE)
    row("Diagnostic", "Result")
    print(DIAG_RULE.replace("-", "="))
    print("|-----  Metadata  ----------+------------------------------------------------|")
    row("DCGM Version", version)
    row("Driver Version Detected", module_version() or "")
    row("GPU Device IDs Detected", ", ".join([device] * len(findings)))
    print("|-----  Deployment  --------+------------------------------------------------|")
    row("software", _verdict(failed=failed))
    for number, found in findings.items():
        row("", f"GPU{number}: {_verdict(failed=bool(found))}")
        for text in found:
            row("Warning", text)
    print(DIAG_RULE)
