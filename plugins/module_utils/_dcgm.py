# SPDX-License-Identifier: Apache-2.0
"""What DCGM's diagnosis says failed."""

from __future__ import annotations

import json
import typing as t

#: Most characters of a text that is no document.
LIMIT = 300


def failures(text: str) -> list[str]:
    """A line for each failure in what ``dcgmi diag --json`` printed; the text itself where it holds no document."""
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
