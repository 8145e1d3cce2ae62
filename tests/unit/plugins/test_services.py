# SPDX-License-Identifier: Apache-2.0
"""The modules that look at systemd, vllm_instance and replica_info, with a systemctl that keeps its state in a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.modules import vllm_instance
from unit.plugins.support import run_module, write_program

UNIT = "vllm@deepseek.service"
ACTIVE = {
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "NRestarts": "0",
    "MainPID": "4711",
    "ExecMainStartTimestampMonotonic": "0",
    "NeedDaemonReload": "no",
    "UnitFileState": "enabled",
}
ANEW = ACTIVE | {"MainPID": "4712", "ExecMainStartTimestampMonotonic": "1000000"}
STALE = ACTIVE | {"NeedDaemonReload": "yes"}
DEAD = ACTIVE | {"ActiveState": "inactive", "SubState": "dead", "MainPID": "0"}
STARTING = ANEW | {"ActiveState": "activating", "SubState": "start-post"}
FAILED = ANEW | {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "MainPID": "0"}

#: Answers `show` with the state of the unit, and after each verb with the next of the states that follow.
SYSTEMCTL = """
with (HERE / "log").open("a") as log:
    log.write(" ".join(argument for argument in ARGUMENTS if not argument.startswith("--property")) + "\\n")
states = json.loads((HERE / "states.json").read_text())
if "show" in ARGUMENTS:
    unit = states.get(ARGUMENTS[-1], [{}])
    shown = unit[0]
    if "--value" in ARGUMENTS:
        print(shown.get("ActiveState", "inactive"))
    else:
        print("\\n".join(f"{key}={value}" for key, value in shown.items()))
    if (HERE / "moving").exists() and len(unit) > 1:
        unit.pop(0)
        (HERE / "states.json").write_text(json.dumps(states))
elif {"start", "restart"} & {*ARGUMENTS}:
    (HERE / "moving").touch()
"""
JOURNALCTL = "print((HERE / 'journal').read_text(), end='')"


class Systemd:
    """A systemctl and a journalctl, first in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_program(folder / "systemctl", SYSTEMCTL)
        write_program(folder / "journalctl", JOURNALCTL)
        self.units()

    def units(self, **states: list[dict[str, str]]) -> None:
        """The states that each instance goes through, from the verb on."""
        (self.folder / "states.json").write_text(
            json.dumps({f"vllm@{name}.service": row for name, row in states.items()})
        )

    @property
    def verbs(self) -> list[str]:
        """What systemctl was told to do, without the questions."""
        log = self.folder / "log"
        return [line for line in log.read_text().splitlines() if not line.startswith("show")] if log.exists() else []


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    made = Systemd(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.folder), prepend=":")
    monkeypatch.setattr(vllm_instance, "POLL_SECONDS", 0.01)
    return made


def written(path: Path, age: float) -> str:
    """A file that was written ``age`` seconds ago."""
    path.write_text("")
    os.utime(path, (time.time() - age,) * 2)
    return str(path)


def started(age: float, **changes: str) -> dict[str, str]:
    """The state of an instance that was started ``age`` seconds ago."""
    return ACTIVE | {"ExecMainStartTimestampMonotonic": str(round((time.monotonic() - age) * 1e6))} | changes


def test_inputs_count_when_they_are_newer_than_the_process(tmp_path: Path) -> None:
    old, new, absent = written(tmp_path / "old", 1000), written(tmp_path / "new", 10), str(tmp_path / "absent")
    old_target, new_target = tmp_path / "link to old", tmp_path / "link to new"
    old_target.symlink_to(old)
    new_target.symlink_to(new)
    os.utime(new_target, (time.time() - 1000,) * 2, follow_symlinks=False)
    broken = tmp_path / "broken"
    broken.symlink_to("nowhere")
    inputs = [old, new, absent, str(old_target), str(new_target), str(broken)]
    since = round((time.monotonic() - 100) * 1e6)
    assert vllm_instance.newer_inputs(inputs, since) == [new, str(old_target), str(broken)]
    assert vllm_instance.newer_inputs(inputs, round(time.monotonic() * 1e6) + 1_000_000) == []


@pytest.mark.parametrize(
    ("state", "age_of_input", "verb", "reason"),
    [
        (started(100), 1000, "", ""),
        (started(100), 10, "restart", "changed since the start: {path}"),
        (started(100, NeedDaemonReload="yes"), 1000, "restart", f"changed since the start: the unit file of {UNIT}"),
        (
            started(100, NeedDaemonReload="yes"),
            10,
            "restart",
            f"changed since the start: {{path}}, the unit file of {UNIT}",
        ),
        (started(100, ActiveState="activating"), 1000, "", ""),
        (started(100, ActiveState="activating"), 10, "restart", "changed since the start: {path}"),
        (
            STARTING | {"MainPID": "0", "SubState": "auto-restart"},
            1000,
            "start",
            f"{UNIT} is activating (auto-restart)",
        ),
        (DEAD, 1000, "start", f"{UNIT} is inactive (dead)"),
        (FAILED, 10, "start", f"{UNIT} is failed (failed)"),
    ],
)
def test_what_is_to_be_done_and_why(
    state: dict[str, str], age_of_input: float, verb: str, reason: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "input", age_of_input)
    assert vllm_instance.needed_action(state, UNIT, [path]) == (verb, reason.format(path=path))


def run_instance(*, check: bool = False, timeout: int = 5, inputs: tuple[str, ...] = ()) -> dict[str, Any]:
    return run_module("vllm_instance", check=check, name="deepseek", inputs=list(inputs), timeout=timeout)


def test_an_instance_that_runs_and_would_not_come_up_with_the_host_is_enabled(systemd: Systemd) -> None:
    systemd.units(deepseek=[ACTIVE | {"UnitFileState": "disabled"}])
    assert run_instance(check=True)["diff"]["after"] == f"enable {UNIT}\n"
    assert systemd.verbs == []
    result = run_instance()
    assert (result["changed"], result["reason"]) == (True, "")
    assert systemd.verbs == ["daemon-reload", f"enable {UNIT}"]


def test_a_running_instance_is_left_alone(systemd: Systemd) -> None:
    systemd.units(deepseek=[ACTIVE])
    result = run_instance()
    assert (result["changed"], result["reason"], result["unit"], result["diff"]) == (False, "", UNIT, {})
    assert systemd.verbs == []


@pytest.mark.parametrize(
    ("states", "verb"),
    [
        ([DEAD, STARTING, ANEW], "start"),
        ([FAILED, STARTING, ANEW | {"ExecMainStartTimestampMonotonic": "2000000"}], "start"),
        ([STALE, STARTING, STARTING, ANEW], "restart"),
        ([STALE, STALE, STALE, STARTING, ANEW], "restart"),
    ],
    ids=["from nothing", "after a failure", "restart", "restart that systemd takes up late"],
)
def test_an_instance_is_started_or_restarted_and_waited_for(
    systemd: Systemd, states: list[dict[str, str]], verb: str
) -> None:
    systemd.units(deepseek=states)
    planned = run_instance(check=True)
    assert (planned["changed"], systemd.verbs) == (True, [])
    result = run_instance()
    assert json.loads((systemd.folder / "states.json").read_text())[UNIT] == states[-1:]
    assert (result["changed"], result["reason"]) == (True, planned["reason"])
    assert result["diff"]["after"].startswith(f"{verb} {UNIT}: ")
    assert systemd.verbs == ["daemon-reload", f"reset-failed {UNIT}", f"--no-block {verb} {UNIT}"]


def test_an_instance_that_is_starting_is_waited_for(systemd: Systemd) -> None:
    systemd.units(deepseek=[STARTING, STARTING, STARTING, ACTIVE])
    (systemd.folder / "moving").touch()
    result = run_instance()
    assert (result["changed"], systemd.verbs) == (False, [])


@pytest.mark.parametrize(
    ("states", "timeout", "what"),
    [
        ([DEAD, STARTING, FAILED], 5, "failed (exit-code)"),
        ([DEAD, STARTING, STARTING, STARTING | {"NRestarts": "1"}], 5, "failed (success)"),
        ([STALE, STALE, STALE, STARTING, FAILED], 5, "failed (exit-code)"),
        ([DEAD, STARTING], 0, "is not ready after 0 s"),
    ],
    ids=["ended", "crashed and restarted", "ended after a late restart", "too slow"],
)
@pytest.mark.parametrize(
    ("journal", "cause"),
    [
        ("loading\nValueError: no such file\nbye\n", "ValueError: no such file"),
        ("a\nb\n", "b"),
        ("", "its journal is empty"),
    ],
)
def test_an_instance_that_does_not_start_fails_with_its_own_cause(
    systemd: Systemd, states: list[dict[str, str]], timeout: int, what: str, journal: str, cause: str
) -> None:
    systemd.units(deepseek=states)
    (systemd.folder / "journal").write_text(journal)
    result = run_instance(timeout=timeout)
    assert result["msg"] == f"{UNIT} {what}: {cause} -> journalctl --unit {UNIT} has the whole story"
    assert result["journal"] == journal.splitlines()


@pytest.mark.parametrize("check", [False, True])
def test_a_replica_is_described_from_its_record_and_its_units(systemd: Systemd, tmp_path: Path, *, check: bool) -> None:
    systemd.units(b=[FAILED], a=[ACTIVE])
    (tmp_path / "current").mkdir()
    record = {"release": "2026.11", "model": {"repo": "org/name", "revision": "0" * 40}}
    (tmp_path / "current/release.json").write_text(json.dumps(record))
    (tmp_path / "etc").mkdir()
    for name in ("b.yaml", "a.yaml", "c.yaml", "a.env"):
        (tmp_path / "etc" / name).touch()
    # One that spans hosts says so in its plan; that of another is torn.
    (tmp_path / "etc/a.plan.json").write_text('{"fits": true, "replica": "pair", "rank": 1}')
    (tmp_path / "etc/b.plan.json").write_text('{"fits": tr')
    for name, file, state in (("a", "ready", {"since": "2026"}), ("b", "withdrawn", {"why": "Xid 95"})):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / file).write_text(json.dumps(state))
    folders = {"configuration": str(tmp_path / "etc"), "runtime": str(tmp_path / "run")}
    result = run_module("replica_info", check=check, current=str(tmp_path / "current"), **folders)
    assert (result["release"], result["model"], result["revision"]) == ("2026.11", "org/name", "0" * 40)
    assert [(entry["name"], entry["state"]) for entry in result["instances"]] == [
        ("a", "active"),
        ("b", "failed"),
        ("c", "inactive"),
    ]
    assert [(entry["ready"], entry["proof"]) for entry in result["instances"]] == [
        (True, {"since": "2026"}),
        (False, {"why": "Xid 95"}),
        (False, {}),
    ]
    assert [(entry.get("replica"), entry.get("rank")) for entry in result["instances"]] == [
        ("pair", 1),
        (None, None),
        (None, None),
    ]
    assert (result["changed"], systemd.verbs) == (False, [])


@pytest.mark.usefixtures("systemd")
def test_a_bare_host_is_no_replica(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for current in ("absent", "dangling"):
        result = run_module("replica_info", current=str(tmp_path / current), configuration=str(tmp_path / "etc"))
        assert [result[key] for key in ("release", "model", "revision", "instances")] == ["", "", "", []]
