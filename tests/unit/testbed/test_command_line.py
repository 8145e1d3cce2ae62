# SPDX-License-Identifier: Apache-2.0
"""The command line, and how long work shows where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import testbed
from testbed import ROOT, SetupError, Stopwatch


def test_the_command_line_explains_itself() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "testbed", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    assert "up | describe | down | clean | status" in answer.stdout


def test_long_work_shows_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(testbed, "HEARTBEAT", 0.2)
    testbed.run("image", ["sh", "-c", "echo unpacking; sleep 0.7"], tmp_path / "log" / "image.log")
    assert "s  unpacking" in capsys.readouterr().out


def test_work_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"(?s)status 3.*no space left"):
        testbed.run("image", ["sh", "-c", "echo no space left >&2; exit 3"], tmp_path / "image.log")


def test_stages_are_timed_in_order() -> None:
    watch = Stopwatch()
    for name in ("image", "boot"):
        with watch.stage(name):
            pass
    assert list(watch.seconds) == ["image", "boot"]
    assert watch.summary() == "image 0.0 s   boot 0.0 s   total 0.0 s"
