#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Measure once what collectives reach between the GPUs of a host, and refuse a host below the floor."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: collective_bandwidth
short_description: Measure the bandwidth of collectives once and refuse a host below the floor
version_added: 1.0.0
description:
  - Runs the program O(program) by the interpreter of a release, so that the torch and the NCCL that are measured are those that serve.
  - Keeps the measurement on the host with what it is valid for, that is the release, the driver, the GPUs, torch, NCCL and its settings.
    Where that is still so, nothing is measured; where it is not, or the measurement kept is below the floor, it is made again.
  - Does not disturb what serves. Where a unit C(vllm@*.service) runs, a measurement that is due is put off with a warning.
  - Run by root, the program runs as O(user).
options:
  program:
    description: Program on the host that measures.
    type: path
    required: true
  python:
    description: Interpreter of the release, in whose environment torch is.
    type: path
    required: true
  state:
    description: File on the host that keeps the measurement.
    type: path
    required: true
  measure:
    description:
      - V(once) measures where no valid measurement is kept.
      - V(always) measures in any case.
      - V(never) measures nothing and judges a valid measurement that is kept, if there is one.
      - V(require) measures nothing, fails where no measurement is kept, and warns where one is kept that was made before a change.
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
    required: true
  gpus:
    description: UUIDs of the GPUs.
    type: list
    elements: str
    required: true
  settings:
    description: Variables of NCCL in force; C(NCCL_DEBUG) among them does not make a measurement invalid.
    type: dict
    default: {}
  backend:
    description: Backend of torch.distributed.
    type: str
    choices: [nccl, gloo]
    default: nccl
  ranks:
    description: Processes that take part; V(0) is one a GPU.
    type: int
    default: 0
  max_bytes:
    description: Largest size that is measured, in bytes. It is the one that is judged.
    type: int
    default: 8589934592
  floor:
    description: Bus bandwidth in GB/s that all-reduce has to reach at the largest size; V(0) judges nothing but the numbers that the collectives return.
    type: float
    default: 0
  timeout:
    description: Seconds after which a measurement that hangs is ended.
    type: int
    default: 600
  user:
    description: Account without rights under which the program runs.
    type: str
    default: nobody
attributes:
  check_mode:
    description: Says whether a measurement would be made; one that is kept is judged.
    support: full
  diff_mode:
    description: What changes is a measurement; no diff is shown.
    support: none
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Refuse GPUs whose all-reduce is below the floor
  h20.fleet.collective_bandwidth:
    program: /opt/vllm/tools/collectives.py
    python: /opt/vllm/releases/2026.11/bin/python
    state: /var/lib/h20-fleet/nccl-bandwidth.json
    release: "2026.11"
    driver: "{{ gpu.smi.driver_version }}"
    gpus: "{{ gpu.smi.gpus | map(attribute='uuid') }}"
    floor: 430
"""

RETURN = r"""
status:
  description: >-
    V(measured) just now, V(valid) where the one kept still holds, V(due) where check mode would measure, V(put_off) where a replica runs,
    V(outdated) where the one kept was made before a change and none was to be made, V(absent) where there is none.
  returned: always
  type: str
reason:
  description: Why a measurement was made, is due or was put off; empty where the one kept holds.
  returned: always
  type: str
allreduce:
  description: The result that is judged, of all-reduce at the largest size; null where there is no measurement.
  returned: always
  type: dict
  contains:
    bytes:
      description: Size of the buffer.
      type: int
    busbw_gb_s:
      description: Bus bandwidth in GB/s; null with one rank.
      type: float
      sample: 471.3
    algbw_gb_s:
      description: Size by time, in GB/s.
      type: float
    spread_gb_s:
      description: Bus bandwidth of the slowest and of the fastest iteration; null with one rank.
      type: list
      elements: float
      sample: [468.2, 473.9]
floor:
  description: The floor in GB/s.
  returned: always
  type: float
measurement:
  description: What the program printed; null where there is no measurement.
  returned: always
  type: dict
"""

import datetime
import json
import re
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _collectives, _jobs

GIB = 1024**3
#: What says how NCCL reports and not how it works.
SILENT = {"NCCL_DEBUG", "NCCL_DEBUG_FILE", "NCCL_DEBUG_SUBSYS"}
#: Distributions whose version a measurement depends on, by their folders in site-packages.
DISTRIBUTIONS = {"torch": r"torch-([^-]+)\.dist-info", "nccl": r"nvidia_nccl_cu\d+-([^-]+)\.dist-info"}

Params = t.Mapping[str, t.Any]
Document = dict[str, t.Any]


def installed(python: Path) -> dict[str, str]:
    """Versions of torch and NCCL in the interpreter's environment, "" where one is not there; read from folder names, since importing torch takes seconds."""
    names = [path.name for path in python.parent.parent.glob("lib/python*/site-packages/*.dist-info")]
    versions = {}
    for distribution, pattern in DISTRIBUTIONS.items():
        found = (re.fullmatch(pattern, name) for name in sorted(names))
        versions[distribution] = next((match[1] for match in found if match), "")
    return versions


def key(params: Params, versions: t.Mapping[str, str]) -> Document:
    """What a measurement is valid for."""
    return {
        "release": params["release"],
        "driver": params["driver"],
        "gpus": sorted(params["gpus"]),
        **versions,
        "settings": {name: str(value) for name, value in sorted(params["settings"].items()) if name not in SILENT},
        "backend": params["backend"],
        "ranks": params["ranks"] or len(params["gpus"]),
        "max_bytes": params["max_bytes"],
    }


def differences(kept: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> str:
    """What has changed since a measurement was made, in words; "" where it still holds."""
    changed = [name for name, value in wanted.items() if kept.get(name) != value]
    return f"{', '.join(changed)} changed since the last measurement" if changed else ""


def judged(document: t.Mapping[str, t.Any]) -> Document:
    """The all-reduce of the largest size, with the bus bandwidth of its slowest and its fastest iteration."""
    reduces = [result for result in document["results"] if result["collective"] == "all_reduce"]
    result = max(reduces, key=lambda each: int(each["bytes"]))
    bus = result["busbw_gb_s"]
    ends = (result["seconds_max"], result["seconds_min"])
    # The share of the bytes that crosses a link is the same in every iteration.
    spread = None if bus is None else [round(bus * result["seconds"] / end, 1) for end in ends]
    return {name: result[name] for name in ("bytes", "busbw_gb_s", "algbw_gb_s")} | {"spread_gb_s": spread}


def shortfall(document: t.Mapping[str, t.Any], floor: float) -> str:
    """Why the measurement is not good enough, with the remedy; "" where it is, and where nothing crosses a link."""
    result = judged(document)
    bus = result["busbw_gb_s"]
    if bus is None or bus >= floor:
        return ""
    slowest, fastest = result["spread_gb_s"]
    return (
        f"all-reduce over {document['ranks']} ranks ({document['device']}, {document['backend']} {document['nccl']}".rstrip()
        + f") reaches {bus:.1f} GB/s bus bandwidth at {result['bytes'] / GIB:.3g} GiB ({slowest} to {fastest}), the floor is {floor:g} GB/s"
        " -> see that nothing else uses the GPUs, then nvidia-smi nvlink --status and --errorcounters, nvidia-smi -q -d PERFORMANCE"
        " and systemctl status nvidia-fabricmanager; on hardware known to be good set nccl_allreduce_floor_gb_s"
    )


def read_state(path: Path) -> Document:
    """What was kept, {} where there is nothing that can be used."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        judged(kept["measurement"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return kept if isinstance(kept.get("key"), dict) else {}


def write_state(module: AnsibleModule, path: Path, kept: Document) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    text = Path(module.tmpdir) / path.name
    text.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    text.chmod(0o644)
    module.atomic_move(str(text), str(path))


def measure(params: Params, ranks: int) -> Document:
    """Run the program; raises ValueError with its own words where it fails, hangs or prints something else."""
    command = [params["python"], params["program"], f"--ranks={ranks}", f"--backend={params['backend']}"]
    return _collectives.measure([*command, f"--max-bytes={params['max_bytes']}"], params["timeout"], params["user"])


def due(params: Params, kept: Document, wanted: Document) -> str:
    """Why a measurement has to be made, "" where the one that is kept will do."""
    if params["measure"] == "always":
        return "asked for"
    if not kept:
        return "none was made on this host"
    stale = differences(kept["key"], wanted)
    if stale or params["measure"] != "once":
        return stale
    return "the last one is below the floor" if shortfall(kept["measurement"], params["floor"]) else ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "state": {"type": "path", "required": True},
            "measure": {"type": "str", "choices": ["once", "always", "never", "require"], "default": "once"},
            "release": {"type": "str", "required": True},
            "driver": {"type": "str", "required": True},
            "gpus": {"type": "list", "elements": "str", "required": True},
            "settings": {"type": "dict", "default": {}},
            "backend": {"type": "str", "choices": ["nccl", "gloo"], "default": "nccl"},
            "ranks": {"type": "int", "default": 0},
            "max_bytes": {"type": "int", "default": 8 * GIB},
            "floor": {"type": "float", "default": 0},
            "timeout": {"type": "int", "default": 600},
            "user": {"type": "str", "default": "nobody"},
        },
        supports_check_mode=True,
    )
    params: Params = module.params
    wanted = key(params, installed(Path(params["python"])))
    path = Path(params["state"])
    kept = read_state(path)
    reason = due(params, kept, wanted)
    result: Document = {"changed": False, "status": "valid", "reason": reason, "floor": params["floor"]}
    if reason:
        settle(module, params, wanted, result, kept)
        kept = kept_after(module, path, wanted, result, kept)
    document = kept.get("measurement")
    result |= {"measurement": document, "allreduce": judged(document) if document else None}
    if document and (short := shortfall(document, params["floor"])):
        module.fail_json(**(result | {"msg": short}))
    if result["status"] == "absent" and params["measure"] == "require":
        module.fail_json(msg=f"no bandwidth is proved: {reason} -> run the stage again: --tags nccl", **result)
    module.exit_json(**result)


def settle(module: AnsibleModule, params: Params, wanted: Document, result: Document, kept: Document) -> None:
    """Make the measurement that is due, or say why not; it is put into the result under ``made``."""
    if params["measure"] in ("never", "require"):
        result["status"] = "outdated" if kept else "absent"
        if kept and params["measure"] == "require":
            module.warn(
                f"the bandwidth between the GPUs was proved before a change ({result['reason']})"
                " -> at the next stop of the replicas run the stage again: --tags nccl"
            )
    elif running := _jobs.replicas():
        message = (
            f"the bandwidth between the GPUs is not measured ({result['reason']}), because {', '.join(running)} uses them"
            " -> stop it and run the stage again: --tags nccl"
        )
        result |= {"status": "put_off", "msg": message}
        module.warn(message)
    elif module.check_mode:
        result |= {"status": "due", "changed": True}
    else:
        try:
            result |= {"status": "measured", "changed": True, "made": measure(params, wanted["ranks"])}
        except (OSError, KeyError, ValueError) as error:
            module.fail_json(
                msg=f"the bandwidth between {wanted['ranks']} GPUs cannot be measured: {error}"
                f" -> journalctl -k | grep -iE 'xid|nvrm', and on the host, for its whole output: {params['python']} {params['program']}"
                f" --ranks={wanted['ranks']} --backend={params['backend']}",
                **result,
            )


def kept_after(module: AnsibleModule, path: Path, wanted: Document, result: Document, kept: Document) -> Document:
    """What stands for the host now: the measurement just made, or one that was kept and still is valid."""
    if "made" not in result:
        return {} if differences(kept.get("key", {}), wanted) else kept
    now = datetime.datetime.now(datetime.timezone.utc)
    made = {"key": wanted, "time": now.isoformat(timespec="seconds"), "measurement": result.pop("made")}
    write_state(module, path, made)
    return made


if __name__ == "__main__":
    main()
