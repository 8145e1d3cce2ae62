# SPDX-License-Identifier: Apache-2.0
"""The verb describe: a host that runs gets other hardware, and what cannot be is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker import DockerClient
from testbed import ROOT, ROOT_LABEL, SetupError, fleet, lifecycle
from unit.testbed.sample import DEMO


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fleet, "STATE", tmp_path)
    return tmp_path / "demo/hosts/h20-01"


def engine(status: str = "running") -> DockerClient:
    def exec_run(_command: list[str]) -> Any:
        return SimpleNamespace(output=b"")

    box = SimpleNamespace(name="h20-01", labels={ROOT_LABEL: str(ROOT)}, status=status, exec_run=exec_run)
    return cast(DockerClient, SimpleNamespace(containers=SimpleNamespace(get=lambda _name: box)))


def test_a_name_and_a_text_describe_the_same_way(state: Path) -> None:
    lifecycle.describe(engine(), DEMO, "h20-01", "h20_141g_7_gpus")
    named = json.loads((state / "hardware.json").read_text())
    assert [gpu["address"] for gpu in named["gpus"] if not gpu["answers"]] == ["0000:5d:00.0"]
    lifecycle.describe(engine(), DEMO, "h20-01", "{base: h20_141g, faults: {gpus: {'0000:5d:00.0': {answers: false}}}}")
    assert json.loads((state / "hardware.json").read_text())["gpus"] == named["gpus"]


@pytest.mark.parametrize(
    ("host", "text", "status", "message"),
    [
        ("h20-77", "h20_141g", "running", "demo has no host 'h20-77'; it has h20-01, h20-02"),
        ("h20-01", "h20_141g", "exited", "h20-01 does not run"),
        ("h20-01", "h20_999g", "running", "no hardware description 'h20_999g'"),
        ("h20-01", "base: h20_141g\nfaults: {gremlins: 3}", "running", "gremlins"),
        ("h20-01", "base: [", "running", "cannot be described so"),
    ],
)
def test_what_cannot_be_is_refused(host: str, text: str, status: str, message: str, state: Path) -> None:
    with pytest.raises(SetupError, match=message):
        lifecycle.describe(engine(status), DEMO, host, text)
    assert not state.exists()
