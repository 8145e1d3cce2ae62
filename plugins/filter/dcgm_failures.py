# SPDX-License-Identifier: Apache-2.0
"""Filter that reads DCGM's diagnosis."""

from __future__ import annotations

DOCUMENTATION = r"""
name: dcgm_failures
short_description: Name the tests of a DCGM diagnosis that failed
version_added: 1.0.0
description: Reads what C(dcgmi diag --json) of DCGM 4 printed. Text around the document, and text that is none, are borne.
options:
  _input:
    description: What it printed.
    type: str
    required: true
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Show what failed
  ansible.builtin.debug:
    msg: "{{ diagnosis.stdout | h20.fleet.dcgm_failures | join('; ') }}"
"""

RETURN = r"""
_value:
  description: A line for each test and entity that failed, with DCGM's warnings; the text itself where it holds no document.
  type: list
  elements: str
"""

import json
import typing as t

LIMIT = 300


def dcgm_failures(text: str) -> list[str]:
    """A line for each failure in the diagnosis."""
    start, end = text.find("{"), text.rfind("}")
    try:
        document = json.loads(text[start : end + 1])
        categories = document["DCGM Diagnostic"]["test_categories"]
    except (ValueError, KeyError, TypeError):
        words = " ".join(text.split())
        return [words[:LIMIT]] if words else []
    return [
        line
        for category in categories
        for test in category.get("tests", [])
        for result in test.get("results", [])
        if str(result.get("status", "")).lower().startswith("fail")
        for line in _lines(test.get("name", "?"), result)
    ]


def _lines(name: str, result: dict[str, t.Any]) -> list[str]:
    entity = f"{result.get('entity_group', 'GPU')} {result.get('entity_id', '?')}"
    warnings = [str(warning.get("warning", "")) for warning in result.get("warnings", [])] or ["no word why"]
    return [f"{name}, {entity}: {warning}" for warning in warnings]


class FilterModule:
    """Filters of the driver stage."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"dcgm_failures": dcgm_failures}
