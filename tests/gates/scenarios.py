# SPDX-License-Identifier: Apache-2.0
"""The molecule scenarios, a gate each, with the containers that play its hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gates.shell import ROOT, GateError, Shell, fail_with, files

_DEPRECATION = "[DEPRECATION WARNING]"
#: The fleet whose hosts one scenario hands on to the next, in the order of their names; every other scenario has one of its own, of its own name.
HANDED_ON = "molecule"


@dataclass(frozen=True)
class Scenario:
    """A folder of molecule/: the fleet that its hosts are of, the scenario that begins with them bare, and whether it is the last on them."""

    name: str
    about: str
    fleet: str
    foundation: str
    last: bool

    @property
    def first(self) -> bool:
        return self.name == self.foundation


def every() -> Iterator[Scenario]:
    """All scenarios, in the order in which they run."""
    names = [path.parent.name for path in files("molecule/*/molecule.yml")]
    fleets = {name: _fleet(name) for name in names}
    for name, fleet in fleets.items():
        same = [other for other in names if fleets[other] == fleet]
        yield Scenario(name, _about(name), fleet, same[0], name == same[-1])


def _fleet(name: str) -> str:
    return name if (ROOT / f"tests/testbed/fleets/{name}.yml").exists() else HANDED_ON


def _about(name: str) -> str:
    """The first sentence of the comment that a scenario begins with."""
    text = (ROOT / f"molecule/{name}/molecule.yml").read_text(encoding="utf-8")
    comment = " ".join(line[2:] for line in text.splitlines() if line.startswith("# ") and "SPDX" not in line)
    return re.split(r"(?<=[^.])[.:] ", comment)[0].rstrip(".")


def run(scenario: Scenario, shell: Shell) -> None:
    """Run one scenario; one that tests nothing is a failure, and so is a deprecation that our own tree causes. Hosts on which a test failed stay."""
    path = {"PYTHONPATH": "tests"}
    # Bare, because what an earlier run left would hide a missing step.
    bare = ["--bare"] if scenario.first else []
    shell.run("python", "-m", "testbed", "up", "--fleet", scenario.fleet, *bare, env=path)
    lines = shell.run(
        "molecule",
        "test",
        "--scenario-name",
        scenario.name,
        env=path | {"MOLECULE_GLOB": "molecule/*/molecule.yml", "ANSIBLE_DEPRECATION_WARNINGS": "true"},
        limit_s=3600,
    )
    if any("no tests found" in line for line in lines):
        raise GateError("the scenario has no tests")
    fail_with(own_deprecations(lines), "deprecations in this tree", shell)
    if scenario.last:
        shell.run("python", "-m", "testbed", "down", "--fleet", scenario.fleet, env=path)


def own_deprecations(lines: list[str]) -> list[str]:
    """The deprecation warnings of ansible-core in `lines` that come from this tree: `<warning> (<origin>)`, each once."""
    found: dict[str, None] = {}
    for number, line in enumerate(lines):
        if _DEPRECATION not in line:
            continue
        following = lines[number + 1 : number + 12]
        origin = next((match[1] for text in following if (match := re.match(r"\s*Origin: (.+)", text))), "")
        ours = origin.startswith(f"{ROOT}/") and not origin.startswith(f"{ROOT}/.venv/")
        if ours or "h20.fleet" in line:
            found[f"{line.split(_DEPRECATION, 1)[1].lstrip(': ')} ({origin or 'no origin'})"] = None
    return list(found)
