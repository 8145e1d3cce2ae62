# SPDX-License-Identifier: Apache-2.0
"""Figures with their budgets, the table that shows them, the file that keeps them, and playbooks that are measured."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import typing as t
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results.json"
INVENTORY = "inventories/local"
#: Actions that run on the controller alone: a host does not see them.
CONTROLLER_ACTIONS = {
    *(f"ansible.builtin.{name}" for name in ("assert", "debug", "fail", "include_role", "include_tasks", "meta")),
    *(f"ansible.builtin.{name}" for name in ("set_fact", "validate_argument_spec")),
    "h20.fleet.acceptance_report",
    "h20.fleet.fabric_search",
    "h20.fleet.preflight_report",
}


class BenchError(Exception):
    """A playbook that is measured failed."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the table; the budget is the most that is allowed, or the least, and the baseline what the same run measured without the work."""

    name: str
    value: float
    unit: str
    budget: float
    baseline: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is within its budget."""
        return self.value >= self.budget if self.at_least else self.value <= self.budget


@dataclasses.dataclass(frozen=True)
class Play:
    """What a playbook did: its tasks as the json callback reports them, and the CPU time of the controller in seconds."""

    tasks: list[dict[str, t.Any]]
    cpu: float

    def reaching(self, host: str, role: str = "") -> int:
        """How many tasks, of this role where one is named, reached the host; skipped ones do not."""
        tasks = (task for task in self.tasks if task["task"]["name"].startswith(f"{role} : " if role else ""))
        return sum(_reached(task["hosts"][host]) for task in tasks if host in task["hosts"])

    def result(self, name: str) -> dict[str, t.Any]:
        """What the task of this name returned on the only host that has run it."""
        [result] = next(task for task in self.tasks if task["task"]["name"] == name)["hosts"].values()
        answer: dict[str, t.Any] = result
        return answer

    def results(self, name: str) -> list[dict[str, t.Any]]:
        """What the task of this name returned on each host."""
        return list(next(task for task in self.tasks if task["task"]["name"] == name)["hosts"].values())

    def seconds(self, name: str) -> float:
        """Wall time of a task, divided by the items of its loop."""
        task = next(task for task in self.tasks if task["task"]["name"] == name)
        spent = (_time(task["task"]["duration"]["end"]) - _time(task["task"]["duration"]["start"])).total_seconds()
        return spent / max(len(result.get("results", [None])) for result in task["hosts"].values())


def table(figures: list[Figure]) -> str:
    """The figures in columns, those over their budget marked."""
    rows = [("NAME", "VALUE", "BUDGET", "BASELINE", "UNIT", "")]
    for figure in figures:
        baseline = "-" if figure.baseline is None else f"{figure.baseline:.2f}"
        mark = "" if figure.holds else "UNDER" if figure.at_least else "OVER"
        budget = f"{'>=' if figure.at_least else '<='} {figure.budget:g}"
        rows.append((figure.name, f"{figure.value:.2f}", budget, baseline, figure.unit, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def keep(figures: list[Figure]) -> None:
    """Write the figures to the results; those of other names stay as they were."""
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    entries = {entry["name"]: entry for entry in before} | {
        figure.name: dataclasses.asdict(figure) for figure in figures
    }
    RESULTS.write_text(json.dumps(list(entries.values()), indent=2) + "\n", encoding="utf-8")


def play(name: str, **variables: t.Any) -> Play:
    """Run a playbook on the demo's hosts and measure it. Raises BenchError where it fails."""
    program = Path(sys.executable).with_name("ansible-playbook")
    environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [str(program), "-i", INVENTORY, name, "-e", json.dumps(variables)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BenchError(
            f"{name} failed with exit code {done.returncode}; `make demo` makes the hosts that it needs\n{done.stdout[-2000:]}{done.stderr}"
        )
    # Tables of findings stand before the document, times of tasks behind it.
    start = done.stdout.index("{\n")
    document, _end = json.JSONDecoder().raw_decode(done.stdout, start)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Play([task for play in document["plays"] for task in play["tasks"]], cpu)


def _reached(result: dict[str, t.Any]) -> bool:
    if result.get("action") in CONTROLLER_ACTIONS:
        return False
    return not all(item.get("skipped", False) for item in result.get("results", [result]))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix("Z"))
