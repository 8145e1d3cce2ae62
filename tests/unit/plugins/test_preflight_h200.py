# SPDX-License-Identifier: Apache-2.0
"""The report that preflight wrote on a real host: one H200 of eight, no NVSwitch, no hub in reach. Judged again it says the same."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.h20.fleet.plugins.module_utils import _nvidia_smi, _preflight, _profiles

ROOT = Path(__file__).resolve().parents[3]
CAPTURES = Path(__file__).parent / "captures"
REPORT = json.loads((CAPTURES / "preflight-h200.json").read_text(encoding="utf-8"))
#: What moves from one look at an idle GPU to the next.
MOVES = {"memory_used_mib", "processes"}


@pytest.fixture
def release() -> dict[str, dict[str, str | int]]:
    shipped = ROOT / "roles/release/files/releases" / f"{REPORT['release']}.yml"
    document: dict[str, dict[str, str | int]] = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    return document


def test_judged_again_it_is_refused_for_the_same_reasons(release: dict[str, dict[str, str | int]]) -> None:
    path = f"/data/models/{release['model']['repo']}/{release['model']['revision']}"
    unreachable = next(entry for entry in REPORT["findings"] if entry["id"] == "MODEL-SOURCE")
    model = {"present": False, "config": None, "error": f"{unreachable['evidence']} -> {unreachable['remedy']}"}
    need: dict[str, t.Any] = {
        "profile": "auto",
        "driver_version": release["driver"]["version"],
        "minimum_driver": "580.65.06",
        "driver_replace": False,
        "secure_boot_enrolled": False,
        "memory_gib": 512,
        "nodes": "single",
        "model_root": "/data/models",
        "model_path": path,
        "model_bytes": release["model"]["bytes"],
        "instances": [],
    }
    gpu = REPORT["hardware"] | {"profiles": _profiles.PROFILES}
    found = _preflight.findings(REPORT["system"], gpu, model, need)
    assert [dataclasses.asdict(entry) for entry in found] == REPORT["findings"]
    assert _preflight.verdict(found) == REPORT["verdict"] == "not_fit"
    assert {"GPU-COUNT", "NVSWITCH-COUNT"} <= {entry.id for entry in found}


def test_what_it_read_is_what_nvidia_smi_printed_there() -> None:
    printed = _nvidia_smi.parse((CAPTURES / "nvidia-smi-h200.xml").read_text(encoding="utf-8"))
    read = REPORT["hardware"]["smi"]
    assert printed["driver_version"] == read["driver_version"] == "580.159.04"
    [there], [here] = printed["gpus"], read["gpus"]
    assert {key: value for key, value in there.items() if key not in MOVES} == {
        key: value for key, value in here.items() if key not in MOVES
    }
