# SPDX-License-Identifier: Apache-2.0
"""acceptance_gate.py: on what a replica starts, and why it does not, with the remedy."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.plugins.support import write_program

GATE = Path(__file__).parents[3] / "roles/acceptance/files/acceptance_gate.py"
TODAY = datetime.datetime.now(datetime.UTC).date()
RECORD: dict[str, Any] = {
    "verdict": "accepted",
    "measured": "2026-11-25T04:00:00+00:00",
    "key": {"gpus": ["GPU-1", "GPU-2"]},
    "waivers": [],
    "checks": [
        {"name": "DCGM", "verdict": "fail", "evidence": "it hangs"},
        {"name": "ECC", "verdict": "pass", "evidence": "none"},
    ],
}


def waiver(days: int) -> dict[str, Any]:
    until = str(TODAY + datetime.timedelta(days=days))
    return {"verdict": "waived", "waivers": [{"name": "w", "check": "DCGM", "reason": "known", "until": until}]}


def gate(folder: Path, record: Any, smi: str = "print('GPU-2'); print('GPU-1')") -> tuple[int, str]:
    path = folder / "acceptance.json"
    if record is not None:
        path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    if smi:
        write_program(folder / "bin/nvidia-smi", smi)
    environment = os.environ | {"PATH": str(folder / "bin")}
    done = subprocess.run(
        [sys.executable, str(GATE), str(path)], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def test_an_accepted_host_starts_and_says_on_what_it_rests(tmp_path: Path) -> None:
    assert gate(tmp_path, RECORD) == (0, "accepted 2026-11-25T04:00:00+00:00, 2 GPUs")


def test_a_waiver_is_named_and_holds_on_its_last_day(tmp_path: Path) -> None:
    status, told = gate(tmp_path, RECORD | waiver(0))
    assert status == 0
    assert told.endswith(f"DCGM waived by w until {TODAY}: known")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (None, "there is no "),
        ("{", "is no record of it"),
        ({}, "is no record of it"),
        (RECORD | {"verdict": "refused"}, "this host is not accepted: DCGM: it hangs -> mend it"),
        (RECORD | {"verdict": "unjudged", "checks": []}, "it was measured, but not judged"),
        (RECORD | waiver(-1), "the waiver w for DCGM has expired"),
        (RECORD | {"key": {"gpus": ["GPU-1", "GPU-3"]}}, "new are GPU-2; gone are GPU-3"),
    ],
)
def test_all_else_is_refused_with_the_remedy(tmp_path: Path, record: Any, words: str) -> None:
    status, told = gate(tmp_path, record)
    assert (status, told.startswith("error: ")) == (1, True)
    assert words in told
    assert "--tags acceptance" in told


@pytest.mark.parametrize(
    ("smi", "words"),
    [
        ("", "nvidia-smi cannot be run"),
        ("sys.exit('No devices were found')", "nvidia-smi does not answer: No devices were found"),
    ],
)
def test_gpus_that_do_not_answer_are_refused(tmp_path: Path, smi: str, words: str) -> None:
    status, told = gate(tmp_path, RECORD, smi)
    assert status == 1
    assert f"{words}" in told
