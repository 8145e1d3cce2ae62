# SPDX-License-Identifier: Apache-2.0
"""Checks of hosts as JUnit XML, which every pipeline shows: a suite a host, a case a check."""

from __future__ import annotations

import typing as t
from xml.etree import ElementTree as ET

from ansible_collections.h20.fleet.plugins.module_utils import _acceptance

Record = t.Mapping[str, t.Any]


def document(name: str, records: t.Mapping[str, Record], unreached: t.Mapping[str, str]) -> str:
    """The XML. A waived check is skipped and says by what; a flagged one passes and says so; a host without a record is an error."""
    root = ET.Element("testsuites", name=name)
    for host, record in records.items():
        waived = {waiver["check"]: waiver for waiver in record["waivers"]}
        cases = [_case(host, check, waived.get(check["name"])) for check in record["checks"]]
        _suite(root, host, cases)
    for host, why in unreached.items():
        case = ET.Element("testcase", classname=host, name="MEASUREMENT")
        ET.SubElement(case, "error", message=why)
        _suite(root, host, [case])
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, host: str, cases: t.Sequence[ET.Element]) -> None:
    counts: dict[str, t.Any] = {
        kind: str(sum(case.find(tag) is not None for case in cases)) for kind, tag in _COUNTED.items()
    }
    suite = ET.SubElement(root, "testsuite", name=host, tests=str(len(cases)), **counts)
    suite.extend(cases)


_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def _case(host: str, check: t.Mapping[str, t.Any], waiver: t.Mapping[str, str] | None) -> ET.Element:
    case = ET.Element("testcase", classname=host, name=check["name"])
    told = f"{check['evidence']} -> {check['remedy']}" if check["remedy"] else str(check["evidence"])
    if check["verdict"] in (_acceptance.FAIL, _acceptance.NOT_RUN) and waiver:
        ET.SubElement(
            case, "skipped", message=f"waived by {waiver['name']} until {waiver['until']}: {waiver['reason']}; {told}"
        )
    elif check["verdict"] == _acceptance.FAIL:
        ET.SubElement(case, "failure", message=told)
    elif check["verdict"] == _acceptance.NOT_RUN:
        ET.SubElement(case, "error", message=told)
    else:
        flagged = "flagged: " if check["verdict"] == _acceptance.FLAGGED else ""
        ET.SubElement(case, "system-out").text = flagged + told
    return case
