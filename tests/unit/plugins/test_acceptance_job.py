# SPDX-License-Identifier: Apache-2.0
"""acceptance_job: when a host is measured, how a measurement is joined, and what is kept; systemd is a stand-in, the program is real."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from unit.plugins.support import run_module, write_program

UUIDS = ["GPU-1", "GPU-2"]
FACTS = {"ecc": {uuid: {"address": "0000:18:00.0", "errors": 0, "remap": False} for uuid in UUIDS}, "xids": []}
XID = {
    "time": "1",
    "kind": "xid",
    "address": "0000:18:00.0",
    "code": 31,
    "name": "x",
    "action": "y",
    "fatal": False,
    "message": "",
}
OUTPUT: dict[str, Any] = {
    "schema": 1,
    "backend": "cuda",
    "dcgm": {"level": 2, "status": 0, "hung": False, "output": "{}"},
    "disk": {"gb_s": 5.0},
}
SYSTEMCTL = """\
if ARGUMENTS[0] == "is-active":
    print((HERE / "state").read_text().strip())
elif ARGUMENTS[0] == "list-units":
    print((HERE / "units").read_text(), end="")
"""
SYSTEMD_RUN = "(HERE / 'runs').open('a').write(' '.join(ARGUMENTS) + '\\n'); (HERE / 'state').write_text('active')"


@dataclasses.dataclass
class Host:
    """A host with systemd, and the module's parameters for it."""

    folder: Path
    params: dict[str, Any]

    def run(self, *, check: bool = False, **changes: Any) -> dict[str, Any]:
        return run_module("acceptance_job", check=check, **(self.params | changes))

    def say(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text, encoding="utf-8")

    def end(self, output: dict[str, Any] | None) -> None:
        self.say("state", "inactive")
        if output is not None:
            (self.folder / "state/acceptance-output.json").write_text(json.dumps(output), encoding="utf-8")

    def measure(self, verdict: str = "accepted", **changes: Any) -> None:
        """A whole measurement, and the verdict that the controller writes."""
        assert self.run(**changes)["status"] == "running"
        self.end(OUTPUT)
        record = self.run(step="collect", **changes)["record"]
        Path(self.params["record"]).write_text(json.dumps(record | {"verdict": verdict}), encoding="utf-8")

    @property
    def runs(self) -> list[str]:
        path = self.folder / "bin/runs"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    write_program(tmp_path / "bin/systemctl", SYSTEMCTL)
    write_program(tmp_path / "bin/systemd-run", SYSTEMD_RUN)
    write_program(tmp_path / "bin/journalctl", "print((HERE / 'journal').read_text(), end='')")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    params = {
        "program": "/opt/vllm/tools/acceptance.py",
        "python": "/venv/bin/python",
        "record": str(tmp_path / "state/acceptance.json"),
        "collectives": str(tmp_path / "state/nccl-bandwidth.json"),
        "release": "2026.11",
        "driver": "580.173.02",
        "gpus": UUIDS,
        "facts": FACTS,
        "model": "/data/models/m",
    }
    made = Host(tmp_path, params)
    for name, text in {"state": "inactive", "units": "", "journal": ""}.items():
        made.say(name, text)
    return made


def test_measures_once_in_a_unit_and_keeps_what_it_is_valid_for(host: Host) -> None:
    first = host.run()
    assert (first["status"], first["reason"], first["changed"]) == ("running", "none was made on this host", True)
    [command] = host.runs
    assert "--unit=h20-fleet-acceptance.service" in command
    assert command.endswith(
        f"--output={host.folder}/state/acceptance-output.json --dcgm-level=2 --dcgm-timeout=900 --load-seconds=30 --disk-seconds=20"
    )
    host.say("journal", "load on 8 GPUs for 30 s\n")
    assert host.run(step="look")["progress"] == "load on 8 GPUs for 30 s"
    host.end(OUTPUT)
    assert host.run(step="look")["status"] == "ended"
    kept = host.run(step="collect")["record"]
    assert (kept["verdict"], kept["key"]["gpus"], kept["measurement"]["disk"]) == ("unjudged", UUIDS, {"gb_s": 5.0})
    assert "output" not in kept["measurement"]["dcgm"]
    assert sorted(path.name for path in (host.folder / "state").iterdir()) == ["acceptance.json"]


def test_an_accepted_host_is_left_alone_and_a_refused_one_is_measured_again(host: Host) -> None:
    host.measure()
    again = host.run()
    assert (again["status"], again["reason"], again["changed"]) == ("valid", "", False)
    host.measure("refused", measure="always")
    assert host.run()["reason"] == "the host was refused"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"release": "2026.12"}, "release changed since the last measurement"),
        ({"driver": "595.71.05"}, "driver changed since the last measurement"),
        ({"gpus": ["GPU-1", "GPU-3"]}, "gpus changed since the last measurement"),
        ({"dcgm_level": 3}, "dcgm_level changed since the last measurement"),
        ({"backend": "cpu"}, "backend changed since the last measurement"),
        ({"measure": "always"}, "asked for"),
    ],
)
def test_measures_again_after_a_change(host: Host, changes: dict[str, Any], reason: str) -> None:
    host.measure()
    assert host.run(**changes)["reason"] == reason
    assert len(host.runs) == 2


def test_a_deeper_diagnosis_and_another_order_of_the_gpus_are_no_change(host: Host) -> None:
    host.measure(dcgm_level=3)
    assert host.run(gpus=UUIDS[::-1])["status"] == "valid"


def test_a_measurement_under_way_is_joined_and_one_that_ended_meanwhile_is_taken_in(host: Host) -> None:
    host.run()
    assert host.run()["status"] == "running"
    host.end(OUTPUT)
    assert host.run()["status"] == "ended"
    assert len(host.runs) == 1
    # Of another release it is of no use.
    assert host.run(release="2026.12")["status"] == "running"
    assert len(host.runs) == 2


def test_does_not_disturb_a_replica(host: Host) -> None:
    host.say("units", "vllm@deepseek-v3.service loaded active running x\n")
    put_off = host.run()
    assert (put_off["status"], put_off["replicas"], put_off["record"]) == ("put_off", ["vllm@deepseek-v3.service"], {})
    host.say("units", "")
    host.measure()
    host.say("units", "vllm@deepseek-v3.service loaded active running x\n")
    changed = host.run(driver="595.71.05")
    assert (changed["status"], changed["record"]["verdict"]) == ("put_off", "accepted")
    assert host.run(gpus=["GPU-9"])["record"] == {}


def test_check_mode_and_a_look_write_nothing(host: Host) -> None:
    files = [{"path": str(host.folder / "lib/gate.py"), "content": "pass\n"}]
    due = host.run(check=True, files=files)
    assert (due["status"], due["changed"], due["diff"][0]["after"]) == ("due", True, "pass\n")
    assert not (host.folder / "lib").exists()
    assert host.run(measure="never")["status"] == "absent"
    assert host.run(measure="require", files=files)["status"] == "absent"
    assert host.runs == []
    host.measure()
    assert "is not what was asked for" in host.run(measure="require", files=files)["msg"]
    host.measure(files=files, measure="always")
    assert (host.folder / "lib/gate.py").stat().st_mode & 0o777 == 0o755
    assert host.run(measure="require", files=files)["status"] == "valid"
    assert host.run(measure="require", driver="595.71.05")["status"] == "outdated"


def test_what_is_missing_is_named_and_only_guessed_in_check_mode(host: Host) -> None:
    lacking = [{"stage": "model", "path": str(host.folder / "config.json")}]
    assert "(stage model) -> run the missing stage first: --tags model,acceptance" in host.run(requires=lacking)["msg"]
    assert host.run(requires=lacking, check=True)["status"] == "lacking"


def test_a_unit_that_fails_leaves_its_reason(host: Host) -> None:
    host.run()
    host.end(None)
    host.say("journal", "load\nerror: no space left\n")
    assert host.run(step="collect")["record"]["measurement"]["failed"] == "no space left"


def test_errors_and_xids_of_before_and_after_are_kept(host: Host) -> None:
    host.run(facts=FACTS | {"xids": [XID]})
    host.end(OUTPUT)
    worse = json.loads(json.dumps(FACTS))
    worse["ecc"]["GPU-2"]["errors"] = 2
    new = XID | {"time": "2", "code": 79}
    made = host.run(step="collect", facts=worse | {"xids": [XID, new]})["record"]["measurement"]
    assert made["after"]["xids"] == [new]
    assert (made["before"]["ecc"]["GPU-2"]["errors"], made["after"]["ecc"]["GPU-2"]["errors"]) == (0, 2)


def test_a_failed_diagnosis_is_told_by_its_tests(host: Host) -> None:
    host.run()
    host.end(OUTPUT | {"dcgm": OUTPUT["dcgm"] | {"status": 226, "output": "Error: unable to connect"}})
    assert host.run(step="collect")["record"]["measurement"]["dcgm"]["failures"] == ["Error: unable to connect"]


def test_collectives_are_those_of_these_gpus_at_the_largest_size(host: Host) -> None:
    assert host.run(measure="never")["collectives"] == {"reason": "none was measured on this host"}
    results = [
        {"collective": name, "bytes": size, "busbw_gb_s": size / 10}
        for name in ("all_reduce", "all_gather")
        for size in (10, 4000)
    ]
    kept = {"key": {"gpus": UUIDS}, "time": "t", "measurement": {"ranks": 2, "results": results}}
    path = Path(host.params["collectives"])
    path.parent.mkdir()
    path.write_text(json.dumps(kept), encoding="utf-8")
    assert host.run(measure="never")["collectives"] == {
        "all_reduce": 400.0,
        "all_gather": 400.0,
        "ranks": 2,
        "time": "t",
    }
    assert host.run(measure="never", gpus=["GPU-9"])["collectives"] == {"reason": "it was measured for other GPUs"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": {}}'])
def test_a_torn_record_counts_as_none(host: Host, text: str) -> None:
    path = Path(host.params["record"])
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    assert host.run()["reason"] == "none was made on this host"
