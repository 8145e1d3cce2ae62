# SPDX-License-Identifier: Apache-2.0
"""`make bench`: measures on the demo's converged hosts what the project promises, prints a table and writes results.json.

Every figure stands beside its budget and, where there is one, beside a baseline measured in the same run, so that a noisy machine shows in both.
"""

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
    "h20.fleet.preflight_report",
}


class BenchError(Exception):
    """A playbook that is measured failed."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the table; the budget is the most that is allowed, and the baseline what the same run measured without the work."""

    name: str
    value: float
    unit: str
    budget: float
    baseline: float | None = None


@dataclasses.dataclass(frozen=True)
class Play:
    """What a playbook did: its tasks as the json callback reports them, and the CPU time of the controller in seconds."""

    tasks: list[dict[str, t.Any]]
    cpu: float

    def reaching(self, host: str) -> int:
        """How many tasks reached the host; skipped ones do not."""
        return sum(_reached(task["hosts"][host]) for task in self.tasks if host in task["hosts"])

    def seconds(self, name: str) -> float:
        """Wall time of a task, divided by the items of its loop."""
        task = next(task for task in self.tasks if task["task"]["name"] == name)
        spent = (_time(task["task"]["duration"]["end"]) - _time(task["task"]["duration"]["start"])).total_seconds()
        return spent / max(len(result.get("results", [None])) for result in task["hosts"].values())


def main() -> int:
    os.chdir(ROOT)
    try:
        site = _play("h20.fleet.site")
        reading = _play("bench/gpu_info.yml")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    hosts = sorted({host for task in site.tasks for host in task["hosts"]})
    figures = [
        Figure("site.noop_tasks", max(site.reaching(host) for host in hosts), "tasks", budget=40),
        Figure("site.noop_controller_cpu", site.cpu / len(hosts), "s/host", budget=3),
        Figure(
            "hardware.gpu_info",
            reading.seconds("Read the hardware"),
            "s",
            budget=1,
            baseline=reading.seconds("Do nothing"),
        ),
    ]
    RESULTS.write_text(json.dumps([dataclasses.asdict(figure) for figure in figures], indent=2) + "\n")
    print(table(figures))
    return 0


def table(figures: list[Figure]) -> str:
    """The figures in columns, those over their budget marked."""
    rows = [("NAME", "VALUE", "BUDGET", "BASELINE", "UNIT", "")]
    for figure in figures:
        baseline = "-" if figure.baseline is None else f"{figure.baseline:.2f}"
        mark = "" if figure.value <= figure.budget else "OVER"
        rows.append((figure.name, f"{figure.value:.2f}", f"{figure.budget:g}", baseline, figure.unit, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _play(name: str) -> Play:
    program = Path(sys.executable).with_name("ansible-playbook")
    environment = os.environ | {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [str(program), "-i", INVENTORY, name], env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BenchError(
            f"{name} failed with exit code {done.returncode}; `make demo` makes the hosts that it needs\n{done.stderr}"
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


if __name__ == "__main__":
    sys.exit(main())
