# SPDX-License-Identifier: Apache-2.0
"""The gates that are little more than one tool's command line."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from gates.shell import ROOT, GateError, Shell, fail_with, files


def venv(shell: Shell) -> None:
    """Compare what is installed with requirements/test.txt, and what the packages ask of each other."""
    wrong: list[str] = []
    for line in (ROOT / "requirements" / "test.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = "absent"
        if installed == "absent" or installed not in requirement.specifier:
            wrong.append(f"{requirement}: {installed}")
    fail_with(wrong, "packages differ from requirements/test.txt; run `rm -r .venv; make setup`", shell)
    shell.run("python", "-m", "pip", "check")


def ruff(shell: Shell) -> None:
    """Lint and format of all Python."""
    errors = []
    for command in (("check", "--no-fix"), ("format", "--check", "--diff")):
        try:
            shell.run("ruff", *command, "--no-cache", ".")
        except GateError as error:
            errors.append(str(error))
    if errors:
        raise GateError("; ".join(errors))


def mypy(shell: Shell) -> None:
    """Strict types: what runs on the hosts for the Python of Ubuntu 22.04, the rest for the oldest controller's."""
    scenarios = files("molecule/*.py")
    sides = {
        "hosts": ("3.10", files("plugins/*.py", "roles/*.py")),
        "tests": ("3.11", files("tests/*.py", "bench/*.py")),
        # Each folder of a scenario's tests is a root of its own, as it is to pytest.
        "molecule": ("3.11", scenarios),
    }
    # Programs of a role lie beside each other on the hosts, and import each other.
    roots = {
        "hosts": "roles/vllm_service/files",
        "molecule": os.pathsep.join(sorted({str(path.parent) for path in scenarios})),
    }
    errors = []
    for side, (version, sources) in sides.items():
        if not sources:
            continue
        options = ("--python-version", version, "--cache-dir", f".cache/mypy-{side}")
        try:
            shell.run("mypy", *options, *sources, env={"MYPYPATH": roots[side]} if side in roots else None)
        except GateError:
            errors.append(side)
    if errors:
        raise GateError(f"type errors in: {', '.join(errors)}")


def yamllint(shell: Shell) -> None:
    """Strict lint of all YAML."""
    shell.run("yamllint", "--strict", ".")


def ansible_lint(shell: Shell) -> None:
    """Profile production with the settings of .config/ansible-lint.yml; a warning is a failure too."""
    shell.run("ansible-lint", "--offline", "--strict", "--profile", "production")


def codespell(shell: Shell) -> None:
    """Spelling, of the files that git tracks or would track."""
    shell.run("codespell", "--toml", "pyproject.toml", *files())


def syntax(shell: Shell) -> None:
    """Parse every playbook and every inventory."""
    playbooks = files("playbooks/*.yml")
    top = [path for path in playbooks if path.parent == Path("playbooks") and not path.name.endswith(".meta.yml")]
    if not top:
        raise GateError("there is no playbook in playbooks/")
    plain = {"ANSIBLE_INJECT_FACT_VARS": "false"}
    shell.run("ansible-playbook", "--syntax-check", "-i", "localhost,", *top, env=plain)
    for inventory in sorted({Path(*path.parts[:2]) for path in files("inventories") if len(path.parts) > 2}):
        shell.run(
            "ansible-inventory",
            "-i",
            inventory,
            "--list",
            env=plain | {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"},
        )


def unit(shell: Shell) -> None:
    """Unit and spec tests; a warning is a failure."""
    shell.run(
        "pytest",
        "-W",
        "error",
        *[path for path in ("tests/unit", "tests/spec") if (ROOT / path).is_dir()],
        env={"COLUMNS": "160"},
    )
