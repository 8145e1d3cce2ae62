# SPDX-License-Identifier: Apache-2.0
"""Every module: documentation that loads and says whose it is; the sanity tests know its licence."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spec.tree import MODULES, ROOT

CORES = ("2.19", "2.20", "2.21")


def documents(path: Path) -> dict[str, str]:
    """The string constants that a module assigns at its top level, by name."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.fixture(scope="module")
def resolved() -> dict[str, Any]:
    """What ansible-doc makes of all modules, their fragments included, by full name."""
    command = [str(Path(sys.executable).with_name("ansible-doc")), "--json", "-t", "module"]
    names = [f"h20.fleet.{path.stem}" for path in MODULES]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    done = subprocess.run([*command, *names], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    documents: dict[str, Any] = json.loads(done.stdout)
    return documents


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_documentation_loads(path: Path, resolved: dict[str, Any]) -> None:
    """DOCUMENTATION, EXAMPLES and RETURN are YAML; the first names the module and says whether it knows check and diff mode."""
    texts = documents(path)
    documentation = yaml.safe_load(texts["DOCUMENTATION"])
    assert documentation["module"] == path.stem
    assert documentation["short_description"]
    assert {"check_mode", "diff_mode"} <= set(resolved[f"h20.fleet.{path.stem}"]["doc"].get("attributes") or {})
    assert isinstance(yaml.safe_load(texts["EXAMPLES"]), list)
    assert isinstance(yaml.safe_load(texts["RETURN"]), dict)


def test_sanity_knows_the_licence() -> None:
    """One line a module in the ignore file, which the versions of ansible-core share: validate-modules knows no licence but the GPL."""
    folder = ROOT / "tests" / "sanity"
    wanted = [
        f"plugins/modules/{path.name} validate-modules:missing-gplv3-license  # the collection is Apache-2.0"
        for path in MODULES
    ]
    for core in CORES:
        lines = (folder / f"ignore-{core}.txt").read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if "missing-gplv3-license" in line] == wanted
