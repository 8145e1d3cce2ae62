# SPDX-License-Identifier: Apache-2.0
"""The tests of a DCGM diagnosis that failed, named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter import dcgm_failures

failures = dcgm_failures.FilterModule().filters()["dcgm_failures"]


def diagnosis(*results: dict[str, Any]) -> str:
    tests = [{"name": "software", "results": list(results)}]
    return json.dumps({"DCGM Diagnostic": {"test_categories": [{"category": "Deployment", "tests": tests}]}}, indent=1)


def result(number: int, status: str, *warnings: str) -> dict[str, Any]:
    found: dict[str, Any] = {"entity_group": "GPU", "entity_id": number, "status": status}
    return found | ({"warnings": [{"warning": text} for text in warnings]} if warnings else {})


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (diagnosis(result(0, "Pass"), result(1, "Skip")), []),
        (
            diagnosis(result(0, "Pass"), result(3, "Fail", "row remappings are pending")),
            ["software, GPU 3: row remappings are pending"],
        ),
        (diagnosis(result(3, "Fail", "a", "b")), ["software, GPU 3: a", "software, GPU 3: b"]),
        (diagnosis(result(3, "FAIL")), ["software, GPU 3: no word why"]),
        ("starting\n" + diagnosis(result(1, "Fail", "a")) + "\ndone", ["software, GPU 1: a"]),
        ("Error: unable to establish\n a connection", ["Error: unable to establish a connection"]),
        ('{"DCGM Diagnostic": []}', ['{"DCGM Diagnostic": []}']),
        ("", []),
    ],
)
def test_failed_tests_are_named(text: str, lines: list[str]) -> None:
    assert failures(text) == lines
