# SPDX-License-Identifier: Apache-2.0
"""stage_requirements: what earlier stages leave behind, and the command that makes up for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.plugins.support import run_module, write_program


def test_a_host_that_has_everything_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "bin/nvidia-smi", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    requires = [
        {"stage": "nvidia_driver", "path": path} for path in ("nvidia-smi", str(tmp_path), f"{tmp_path}/bin/nvidia-smi")
    ]
    result = run_module("stage_requirements", stage="vllm", requires=requires)
    assert (result["changed"], result["missing"]) == (False, [])


def test_each_missing_stage_is_named_once_with_the_command_that_runs_it(tmp_path: Path) -> None:
    requires = [
        {"stage": "nvidia_driver", "path": "no-such-program"},
        {"stage": "python_venv", "path": f"{tmp_path}/bin/python"},
        {"stage": "python_venv", "path": f"{tmp_path}/bin/uv"},
        {"stage": "model", "path": str(tmp_path)},
    ]
    result = run_module("stage_requirements", stage="vllm", requires=requires)
    assert (result["failed"], result["missing"]) == (True, requires[:3])
    assert result["msg"] == (
        f"stage vllm stands on what this host lacks: no-such-program (stage nvidia_driver), {tmp_path}/bin/python (stage python_venv),"
        f" {tmp_path}/bin/uv (stage python_venv) -> run the missing stage first: --tags nvidia_driver,python_venv,vllm"
    )
    shown = run_module("stage_requirements", check=True, stage="vllm", requires=requires)
    assert (shown["changed"], shown["missing"]) == (False, requires[:3])


def test_packages_that_are_not_installed_are_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("g++", "installed"), ("libnuma1", "config-files")]
    lines = [f"{name}\t1-1\t1\tDebian\tinstall\t{status}\tok" for name, status in rows]
    write_program(tmp_path / "bin/dpkg-query", f"print('\\n'.join({lines!r})); sys.exit(1)")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    result = run_module("stage_requirements", stage="vllm", requires=[], packages=["g++", "libnuma1", "gone"])
    assert (result["changed"], result["missing_packages"]) == (False, ["libnuma1", "gone"])
