# SPDX-License-Identifier: Apache-2.0
"""What no file of the project may hold. The patterns are worded so that this file passes its own test."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from gates.shell import ROOT, Shell, fail_with, files

# Every outside address must be a variable: a closed site has none of these, and the client's own default needs no name.
_REGISTRIES = re.compile(
    r"py[p]i\.(org|python\.org)|python[h]osted\.org|(deb|security|ftp|httpredir)\.d[e]bian\.org|registry\.(np[m]js\.org|yarn[p]kg\.com)"
)
_UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X)\b")
_SWALLOWED = re.compile(r"^\s*-?\s*(ignore[_]errors\s*:|failed[_]when\s*:\s*(false|no|False)\b)")

_LICENCE = "SPDX-License-Identifier: Apache-2.0"
_SOURCES = {".py", ".sh", ".yml", ".yaml", ".toml", ".cfg", ".j2", ".in"}
_GENERATED = {Path("changelogs/changelog.yaml")}


def _findings(path: Path, text: str, machine: re.Pattern[str]) -> Iterator[str]:
    lines = text.splitlines()
    tasks = path.suffix in {".yml", ".yaml"} and path.parts[0] in {"roles", "playbooks", "molecule", "inventories"}
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if found := _REGISTRIES.search(line):
            yield f"{where}: names the registry {found[0]}; take it from a variable or from the client's configuration"
        if found := machine.search(line):
            yield f"{where}: {found[0]} is a path of one machine"
        if found := _UNFINISHED.search(line):
            yield f"{where}: {found[0]} marks unfinished work"
        if tasks and (found := _SWALLOWED.search(line)):
            yield f"{where}: `{found[0].strip()}` hides a failure; say what may fail, and how"
    source = path.suffix in _SOURCES or path.name == "Makefile"
    if source and lines and path not in _GENERATED and not any(_LICENCE in line for line in lines[:3]):
        yield f"{path}:1: has no line `{_LICENCE}` at its top"


def check(shell: Shell) -> None:
    """Search every text file of the tree; raises GateError with the findings' number."""
    # The machine at hand is the one whose paths slip in: where the clone lies, who works there, what runs the tests.
    places = {str(ROOT), sys.base_prefix, *([str(Path.home())] if len(Path.home().parts) > 2 else [])} - {
        "/",
        "/usr",
        "/usr/local",
    }
    machine = re.compile(
        "|".join(rf"{re.escape(place)}(?![\w-])" for place in sorted(places)) + r"|(?<![\w.}])/U[s]ers/\w+"
    )
    findings: list[str] = []
    searched = 0
    for path in files():
        if (ROOT / path).is_symlink():
            continue
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        searched += 1
        findings += _findings(path, text, machine)
    shell.say(f"{searched} files searched")
    fail_with(findings, "findings", shell)
