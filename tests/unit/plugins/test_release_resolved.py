# SPDX-License-Identifier: Apache-2.0
"""The filter that finds a release by its name and combines it over its base. (What it refuses, in words: tests/unit/roles/test_release.py.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.filter import release_resolved

FOLDER = Path(__file__).resolve().parents[3] / "roles/release/files/releases"
BASE = "2026.11"
SHIPPED = yaml.safe_load((FOLDER / f"{BASE}.yml").read_text(encoding="utf-8"))
resolved = release_resolved.FilterModule().filters()["release_resolved"]


@pytest.mark.parametrize(
    ("name", "releases", "whole"),
    [
        (BASE, {}, SHIPPED),
        (BASE, {BASE: {"description": "ours"}}, {"description": "ours"}),
        (BASE, {BASE: {"base": BASE, "dcgm": {"version": "4.5.3"}}}, SHIPPED | {"dcgm": {"version": "4.5.3"}}),
        ("ours", {"ours": {"base": BASE, "driver": {"version": "1"}}}, SHIPPED | {"driver": {"version": "1"}}),
        (
            "ours",
            {"ours": {"base": BASE, "vllm": {"source": None}}},
            SHIPPED | {"vllm": SHIPPED["vllm"] | {"source": None}},
        ),
        (
            "ours",
            {"ours": {"base": "theirs", "a": {"b": 1}}, "theirs": {"a": {"b": 0, "c": 2}}},
            {"a": {"b": 1, "c": 2}},
        ),
    ],
)
def test_is_whole_and_without_its_base(name: str, releases: dict[str, Any], whole: dict[str, Any]) -> None:
    assert resolved(name, releases, str(FOLDER)) == {"release": whole, "errors": []}


def test_the_base_stays_as_it_is() -> None:
    releases = {"ours": {"base": "theirs", "a": {"b": 1}}, "theirs": {"a": {"b": 0}}}
    resolved("ours", releases, str(FOLDER))
    assert releases["theirs"] == {"a": {"b": 0}}


@pytest.mark.parametrize(
    "releases",
    [
        {},
        {"ours": {"base": "1999.01"}},
        {"ours": {"base": "ours"}},
        {"ours": {"base": "theirs"}, "theirs": {"base": BASE}},
    ],
)
def test_a_name_that_leads_nowhere_is_refused(releases: dict[str, Any]) -> None:
    found = resolved("ours", releases, str(FOLDER))
    assert found["release"] == {}
    assert len(found["errors"]) == 1
