#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The host's part of acceptance: say whether a measurement is due, have it made by a unit, and keep it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: acceptance_job
short_description: Have a host measured by a unit of systemd, and keep what was measured
version_added: 1.0.0
description:
  - Starts the program that measures as a transient unit, so that the measurement outlives the connection; whoever asks next joins it.
  - The record says what it is valid for. Where that is still so and the host was accepted, nothing is measured.
  - Does not disturb what serves. Where a unit C(vllm@*.service) runs, a measurement that is due is put off.
  - M(h20.fleet.acceptance_measurement) leads it through its steps.
options:
  step:
    description:
      - V(begin) writes the files and starts what is due.
      - V(look) says whether the unit runs and what it last said.
      - V(collect) takes in what a unit that has ended left.
    type: str
    choices: [begin, look, collect]
    default: begin
  files:
    description: Programs that the host gets; where nothing may be written they are compared.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path; its folder is made.
        type: path
        required: true
      content:
        description: What the file holds.
        type: str
        required: true
  requires:
    description: What the measurement stands on, as in M(h20.fleet.stage_requirements).
    type: list
    elements: dict
    default: []
    suboptions:
      stage:
        description: Stage that brings it.
        type: str
        required: true
      path:
        description: Path that has to exist.
        type: path
        required: true
  program:
    description: Program on the host that measures; one of O(files).
    type: path
    required: true
  python:
    description: Interpreter of the release, in whose environment torch is.
    type: path
    required: true
  record:
    description: File on the host that keeps the record; what belongs to a measurement under way lies beside it.
    type: path
    required: true
  collectives:
    description: File on the host in which M(h20.fleet.collective_bandwidth) keeps its measurement.
    type: path
    required: true
  measure:
    description:
      - V(once) measures where no valid measurement of an accepted host is kept.
      - V(always) measures in any case.
      - V(never) and V(require) measure and write nothing.
    type: str
    choices: [once, always, never, require]
    default: once
  release:
    description: Name of the release.
    type: str
    required: true
  driver:
    description: Version of the driver.
    type: str
    default: ""
  gpus:
    description: UUIDs of the GPUs.
    type: list
    elements: str
    default: []
  facts:
    description: What may change under load, that is the memory errors of each GPU and the Xids of this boot.
    type: dict
    default: {}
  model:
    description: Folder of the weights.
    type: path
    required: true
  backend:
    description: V(cpu) keeps copies and load in the memory of the host, for hosts without GPUs.
    type: str
    choices: [cuda, cpu]
    default: cuda
  lanes:
    description: GPUs that are driven; V(0) is all.
    type: int
    default: 0
  dcgm_level:
    description: Level of DCGM's diagnosis. A record of a higher one is as good.
    type: int
    default: 2
  dcgm_timeout:
    description: Seconds after which the diagnosis counts as hung.
    type: int
    default: 900
  load_seconds:
    description: Seconds of load.
    type: int
    default: 30
  disk_seconds:
    description: Most seconds of reading.
    type: int
    default: 20
attributes:
  check_mode:
    description: Says whether a measurement would be made.
    support: full
  diff_mode:
    description: Shows what would be written of O(files).
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: See what is kept of the host
  h20.fleet.acceptance_job:
    measure: never
    program: /opt/vllm/tools/acceptance.py
    python: /opt/vllm/releases/2026.11/bin/python
    record: /var/lib/h20-fleet/acceptance.json
    collectives: /var/lib/h20-fleet/nccl-bandwidth.json
    release: "2026.11"
    model: /data/models/deepseek-ai/DeepSeek-V3-0324/e9b33add
"""

RETURN = r"""
status:
  description: >-
    V(valid) where the record still holds, V(running) and V(ended) of the unit, V(measured) just now, V(due) where check mode would measure,
    V(lacking) where it could only guess, V(put_off) where a replica runs, V(outdated) where the record was made before a change, V(absent) without one.
  returned: always
  type: str
reason:
  description: Why a measurement was made, is due or was put off; empty where the record holds.
  returned: always
  type: str
progress:
  description: What the unit last said.
  returned: always
  type: str
record:
  description: The record that stands for the host; empty where there is none for these GPUs.
  returned: always
  type: dict
collectives:
  description: Bus bandwidth of each collective at the largest size, with the ranks; or the reason why there is none.
  returned: always
  type: dict
"""

import datetime
import json
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _acceptance, _dcgm, _jobs, _programs

#: Of the programs.
MODE = 0o755
UNIT = "h20-fleet-acceptance.service"
#: Seconds that everything may take beside what has its own bound: torch starts from a cold disk, copies, and what is killed takes its time to end.
SLACK = 900

Document = dict[str, t.Any]


def read(path: Path) -> Document:
    """A document, {} where there is none that can be used."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def key(params: t.Mapping[str, t.Any]) -> Document:
    """What a measurement is valid for."""
    same = {name: params[name] for name in ("release", "driver", "backend", "dcgm_level")}
    return same | {"gpus": sorted(params["gpus"])}


def changes(kept: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[str]:
    """What has changed since a measurement was made; a diagnosis that went deeper is as good."""
    return [
        name
        for name, value in wanted.items()
        if kept.get(name) != value and not (name == "dcgm_level" and kept.get(name, 0) > value)
    ]


def collectives(path: Path, gpus: t.Sequence[str]) -> Document:
    """What the stage nccl measured between these GPUs."""
    kept = read(path)
    try:
        if kept["key"]["gpus"] != sorted(gpus):
            return {"reason": "it was measured for other GPUs"}
        results = kept["measurement"]["results"]
        largest = {
            name: max(r["bytes"] for r in results if r["collective"] == name)
            for name in {r["collective"] for r in results}
        }
        found: Document = {r["collective"]: r["busbw_gb_s"] for r in results if r["bytes"] == largest[r["collective"]]}
        return found | {"ranks": kept["measurement"]["ranks"], "time": kept["time"]}
    except (KeyError, TypeError, ValueError):
        return {"reason": "none was measured on this host"}


class Job:
    """A measurement on its way: the note of what it is for, its unit, and what that writes."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.params = module, module.params
        self.record = Path(module.params["record"])
        self.note = self.record.with_name("acceptance-job.json")
        self.output = self.record.with_name("acceptance-output.json")

    def is_running(self) -> bool:
        return _programs.run(["systemctl", "is-active", UNIT]).out.strip() in ("active", "activating", "deactivating")

    def last_words(self) -> str:
        """The last line of the unit's journal."""
        lines = [
            "journalctl",
            "--unit",
            UNIT,
            "--lines",
            "1",
            "--output",
            "cat",
            "--no-pager",
            "--quiet",
            "_TRANSPORT=stdout",
        ]
        return _programs.run(lines).out.strip()

    def start(self, wanted: Document) -> None:
        """Note what is measured and what was there before, and start the unit."""
        self.record.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.output.unlink(missing_ok=True)
        self.note.write_text(json.dumps({"key": wanted, "before": self.params["facts"]}), encoding="utf-8")
        params = self.params
        limit = params["dcgm_timeout"] + params["load_seconds"] + params["disk_seconds"] + SLACK
        _programs.run(["systemctl", "reset-failed", UNIT])
        command = ["systemd-run", "--quiet", f"--unit={UNIT}", "--description=Measure whether this host may serve"]
        command += ["--property=Type=exec", f"--property=RuntimeMaxSec={limit}", "--property=KillMode=control-group"]
        command += [params["python"], params["program"], f"--gpus={params['lanes'] or len(params['gpus'])}"]
        command += [f"--backend={params['backend']}", f"--model={params['model']}", f"--output={self.output}"]
        command += [
            f"--{name.replace('_', '-')}={params[name]}"
            for name in ("dcgm_level", "dcgm_timeout", "load_seconds", "disk_seconds")
        ]
        answer = _programs.run(command)
        if answer.error:
            self.note.unlink(missing_ok=True)
            self.module.fail_json(msg=f"the measurement cannot be started: {answer.error} -> systemctl status {UNIT}")

    def collect(self) -> Document:
        """The record of what was measured, not judged yet; it replaces the one before."""
        note, measured = read(self.note), read(self.output)
        if measured:
            measurement = {name: value for name, value in measured.items() if name != "schema"}
            diagnosis = dict(measurement["dcgm"])
            output = str(diagnosis.pop("output", ""))
            measurement["dcgm"] = diagnosis | {"failures": _dcgm.failures(output) if diagnosis["status"] else []}
        else:
            failure = _jobs.failure(self.module, UNIT)
            told = failure.reason or next(
                (line for line in reversed(failure.journal) if line.strip()), "it said nothing"
            )
            measurement = {"failed": told}
        before, after = note["before"], self.params["facts"]
        known = [{**xid} for xid in before["xids"]]
        measurement["before"] = {"ecc": before["ecc"]}
        measurement["after"] = {"ecc": after["ecc"], "xids": [xid for xid in after["xids"] if xid not in known]}
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        record = {
            "schema": _acceptance.SCHEMA,
            "measured": now,
            "key": note["key"],
            "verdict": "unjudged",
            "measurement": measurement,
        }
        text = Path(self.module.tmpdir) / self.record.name
        text.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        text.chmod(0o644)
        self.module.atomic_move(str(text), str(self.record))
        self.note.unlink(missing_ok=True)
        self.output.unlink(missing_ok=True)
        return record


def install(module: AnsibleModule, write: bool) -> list[Document]:
    """Write the files that differ; returns their diffs. Where nothing may be written, differing ones fail the module."""
    found = []
    for file in module.params["files"]:
        path = Path(file["path"])
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        mode = path.stat().st_mode & 0o777 if path.exists() else 0
        if before == file["content"] and mode == MODE:
            continue
        if not write:
            module.fail_json(msg=f"{path} is not what was asked for -> run the stage again: --tags acceptance")
        found.append(
            {"before_header": str(path), "after_header": str(path), "before": before, "after": file["content"]}
        )
        if not module.check_mode:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            text = Path(module.tmpdir) / path.name
            text.write_text(file["content"], encoding="utf-8")
            text.chmod(MODE)
            module.atomic_move(str(text), str(path))
            path.chmod(MODE)  # a move to where nothing was takes the mode of a plain file
    return found


def due(params: t.Mapping[str, t.Any], kept: Document, stale: list[str]) -> str:
    """Why a measurement has to be made, "" where the record will do."""
    if params["measure"] == "always":
        return "asked for"
    if not kept:
        return "none was made on this host"
    if stale:
        return f"{', '.join(stale)} changed since the last measurement"
    return "the host was refused" if params["measure"] == "once" and kept.get("verdict") == _acceptance.REFUSED else ""


def begin(module: AnsibleModule, job: Job) -> Document:
    """Files, and what is due."""
    params = module.params
    writes = params["measure"] in ("once", "always")
    missing = [entry for entry in params["requires"] if not Path(entry["path"]).exists()]
    if missing and writes and not module.check_mode:
        lacks = ", ".join(f"{entry['path']} (stage {entry['stage']})" for entry in missing)
        stages = ",".join(dict.fromkeys(entry["stage"] for entry in missing))
        module.fail_json(
            msg=f"stage acceptance stands on what this host lacks: {lacks} -> run the missing stage first: --tags {stages},acceptance"
        )
    kept = read(job.record)
    # Of a host that was never measured that is what there is to say, and not that it has no programs.
    diffs = install(module, writes) if writes or kept else []
    result: Document = {"changed": bool(diffs), "diff": diffs, "status": "valid", "reason": "", "progress": ""}
    if missing and writes:
        return result | {"status": "lacking", "record": {}}
    wanted = key(params)
    stale = changes(kept.get("key", {}), wanted)
    if not kept.get("measurement"):
        kept = {}
    # Of other GPUs nothing is known, whatever was measured.
    usable = {} if "gpus" in stale else kept
    result |= {"reason": due(params, kept, stale), "record": usable}
    if writes and not module.check_mode and read(job.note).get("key") == wanted:
        return result | {"status": "running" if job.is_running() else "ended", "progress": job.last_words()}
    if not result["reason"]:
        return result
    if not writes:
        return result | {"status": "outdated" if usable else "absent"}
    if running := _jobs.replicas():
        return result | {"status": "put_off", "replicas": running}
    if module.check_mode:
        return result | {"status": "due", "changed": True}
    job.start(wanted)
    return result | {"status": "running", "changed": True}


def main() -> None:
    files = {"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}}
    requires = {"stage": {"type": "str", "required": True}, "path": {"type": "path", "required": True}}
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": ["begin", "look", "collect"], "default": "begin"},
            "files": {"type": "list", "elements": "dict", "default": [], "options": files},
            "requires": {"type": "list", "elements": "dict", "default": [], "options": requires},
            "program": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "record": {"type": "path", "required": True},
            "collectives": {"type": "path", "required": True},
            "measure": {"type": "str", "choices": ["once", "always", "never", "require"], "default": "once"},
            "release": {"type": "str", "required": True},
            "driver": {"type": "str", "default": ""},
            "gpus": {"type": "list", "elements": "str", "default": []},
            "facts": {"type": "dict", "default": {}},
            "model": {"type": "path", "required": True},
            "backend": {"type": "str", "choices": ["cuda", "cpu"], "default": "cuda"},
            "lanes": {"type": "int", "default": 0},
            "dcgm_level": {"type": "int", "default": 2},
            "dcgm_timeout": {"type": "int", "default": 900},
            "load_seconds": {"type": "int", "default": 30},
            "disk_seconds": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    job = Job(module)
    if module.params["step"] == "look":
        status = "running" if job.is_running() else "ended"
        result: Document = {
            "changed": False,
            "status": status,
            "reason": "",
            "record": {},
            "progress": job.last_words(),
        }
    elif module.params["step"] == "collect":
        result = {"changed": True, "status": "measured", "reason": "", "record": job.collect(), "progress": ""}
    else:
        result = begin(module, job)
    module.exit_json(collectives=collectives(Path(module.params["collectives"]), module.params["gpus"]), **result)


if __name__ == "__main__":
    main()
