# SPDX-License-Identifier: Apache-2.0
"""Run the gates: `PYTHONPATH=tests python -m gates.run [--fast] [--list] [name ...]`; `molecule` names every scenario.

Gates run in two lanes beside each other: the scenarios that hand on one fleet, and all else. Every gate runs, whatever failed before it, except one
whose foundation failed: that one counts as failed too. The whole output of a gate is in .cache/logs/<gate>.log. The last line is
`N passed, N failed` over the gates; the exit status is 1 if one failed, 2 for a wrong name.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from gates import checks, guard, locks, package, parsers, sanity, scenarios
from gates.shell import CACHE, GateError, Shell, stop

LOGS = CACHE / "logs"
TAIL = 60
LANES = ("tree", "site")


@dataclass(frozen=True)
class Gate:
    """One gate: its name, what it proves, and how."""

    name: str
    about: str
    check: Callable[[Shell], None]
    fast: bool = True
    needs: str = ""
    step: str = ""
    lane: str = "tree"


@dataclass(frozen=True)
class Outcome:
    """How a gate ended: `error` is empty where it passed; `steps` are (name, seconds)."""

    gate: Gate
    seconds: float
    error: str = ""
    steps: list[tuple[str, float]] = field(default_factory=list)


GATES = (
    Gate("venv", "the installed tools are the pinned ones and fit each other", checks.venv),
    Gate("ruff", "Python: lint and format", checks.ruff),
    Gate("mypy", "Python: strict types", checks.mypy),
    Gate("yamllint", "YAML: strict lint", checks.yamllint),
    Gate("ansible-lint", "Ansible: profile production and beyond", checks.ansible_lint),
    Gate("codespell", "spelling", checks.codespell),
    Gate("guard", "no registry's name, no machine's path, no hidden failure, a licence on every source", guard.check),
    Gate("changelog", "changelog fragments", package.changelog),
    Gate("syntax", "every playbook and inventory parses, without injected facts", checks.syntax),
    Gate("unit", "unit and spec tests", checks.unit),
    Gate(
        "locks",
        "each lock still answers its inputs, is hashed, of one CUDA, and the one that the releases name",
        locks.check,
        fast=False,
        step=r"--output-file \S*/([\w.-]+)\.txt$",
    ),
    Gate(
        "parsers",
        "each version of vLLM takes every serving profile, and lists the options that are committed: its own parser",
        parsers.check,
        fast=False,
    ),
    Gate(
        "package", "the tarball installs offline elsewhere, verifies, and works from there", package.check, fast=False
    ),
    Gate(
        "sanity",
        "ansible-test sanity of the ansible-core in use",
        sanity.check,
        fast=False,
        step=r'^Running sanity test "([\w-]+)"',
    ),
    *(
        Gate(
            f"molecule/{scenario.name}",
            scenario.about,
            partial(scenarios.run, scenario),
            fast=False,
            needs="" if scenario.first else f"molecule/{scenario.foundation}",
            step=r"\[[\w-]+ > (\w+)\].*Executing",
            lane="site" if scenario.fleet == scenarios.HANDED_ON else "tree",
        )
        for scenario in scenarios.every()
    ),
)


def run_gate(gate: Gate, failed: set[str], named: bool) -> Outcome:
    """Run one gate with its log; `failed` are the names of the gates that failed before; `named`: its lines say whose they are."""
    if gate.needs in failed:
        return Outcome(gate, 0.0, f"not run, because {gate.needs} failed")
    path = LOGS / f"{gate.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.time()
    error = ""
    with path.open("w", encoding="utf-8") as log:
        prefix = f"{gate.name} | " if named else ""
        shell = Shell(log, live=not gate.fast, step=re.compile(gate.step) if gate.step else None, prefix=prefix)
        try:
            gate.check(shell)
        except GateError as failure:
            error = str(failure)
            log.write(f"{failure}\n")
    end = time.time()
    steps = [(name, after - begin) for (name, begin), (_, after) in itertools.pairwise([*shell.steps, ("", end)])]
    if error and gate.fast:
        print("\n".join(path.read_text(encoding="utf-8").splitlines()[-TAIL:]))
    return Outcome(gate, end - start, error, steps)


def report(outcomes: list[Outcome]) -> None:
    """Print the table of gates, the longest steps of the long gates, what failed and where to read on, and the sum."""
    total = sum(outcome.seconds for outcome in outcomes) or 1.0
    print(f"\n{'gate':<30}{'result':<9}{'seconds':>8}{'share':>7}  what it proves")
    for outcome in outcomes:
        result = "FAILED" if outcome.error else "passed"
        share = outcome.seconds / total
        print(f"{outcome.gate.name:<30}{result:<9}{outcome.seconds:>8.1f}{share:>7.0%}  {outcome.gate.about}")
    print(f"{'':<30}{'':<9}{total:>8.1f}")

    steps = [(f"{outcome.gate.name}: {name}", seconds) for outcome in outcomes for name, seconds in outcome.steps]
    if steps:
        print("\nwhere the time went")
        for name, seconds in sorted(steps, key=lambda step: -step[1])[:10]:
            print(f"{seconds:>10.1f}  {name}")

    failures = [outcome for outcome in outcomes if outcome.error]
    if failures:
        print()
    for outcome in failures:
        print(
            f"FAILED {outcome.gate.name}: {outcome.error}   -> .cache/logs/{outcome.gate.name}.log; again: make test ONLY={outcome.gate.name}"
        )
    print(f"\n{len(outcomes) - len(failures)} passed, {len(failures)} failed")


def main(arguments: list[str]) -> int:
    """Pick the gates, run them in order, report."""
    parser = argparse.ArgumentParser(prog="gates.run", description="Run the project's gates.")
    parser.add_argument("--fast", action="store_true", help="only the fast gates")
    parser.add_argument("--list", action="store_true", help="name the gates and stop")
    parser.add_argument("names", nargs="*", metavar="gate", help="only these gates")
    options = parser.parse_args(arguments)
    if options.list:
        for gate in GATES:
            print(f"{gate.name:<30}{'fast' if gate.fast else 'long':<6}{gate.about}")
        return 0
    chosen = [gate for gate in GATES if not options.names or any(_names(name, gate) for name in options.names)]
    unknown = [name for name in options.names if not any(_names(name, gate) for gate in GATES)]
    if unknown:
        parser.error(f"no such gate: {', '.join(unknown)}; there are {', '.join(gate.name for gate in GATES)}")
    outcomes = run_lanes([gate for gate in chosen if gate.fast or not options.fast])
    report(outcomes)
    return int(any(outcome.error for outcome in outcomes))


def _names(name: str, gate: Gate) -> bool:
    return gate.name == name or gate.name.startswith(f"{name}/")


def run_lanes(chosen: Sequence[Gate]) -> list[Outcome]:
    """Run the gates of each lane one after the other, and the lanes beside each other; the outcomes in the order of `chosen`."""
    lanes = [lane for lane in ([gate for gate in chosen if gate.lane == name] for name in LANES) if lane]
    outcomes: dict[str, Outcome] = {}

    def drive(lane: list[Gate]) -> None:
        for gate in lane:
            print(f"{gate.name:<13} ..." if gate.fast else f"\n--- {gate.name}: {gate.about}", flush=True)
            outcome = run_gate(gate, {done.gate.name for done in outcomes.values() if done.error}, len(lanes) > 1)
            outcomes[gate.name] = outcome
            ended = f"FAILED: {outcome.error}" if outcome.error else "passed"
            print(f"{gate.name:<13} {ended} ({outcome.seconds:.1f} s)", flush=True)

    others = [threading.Thread(target=drive, args=(lane,), daemon=True) for lane in lanes[1:]]
    for thread in others:
        thread.start()
    drive(lanes[0])
    for thread in others:
        thread.join()
    return [outcomes[gate.name] for gate in chosen]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        stop()
        sys.exit(130)
