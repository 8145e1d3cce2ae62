# SPDX-License-Identifier: Apache-2.0
"""Drift: each difference from the smallest change of a host that has none, and the table that an operator reads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter.driver_plan import driver_plan
from ansible_collections.h20.fleet.plugins.module_utils import _drift
from ansible_collections.h20.fleet.plugins.modules import drift_info
from unit.plugins.fit_host import fit, package
from unit.plugins.support import run_module

Facts = dict[str, Any]
KERNEL = "6.8.0-60-generic"
NCCL = "/etc/nccl.conf"
MARK = "/var/lib/h20-fleet/out-of-service"
UNIT = "vllm@deepseek.service"
FETCH_UNIT = "/etc/systemd/system/model-fetch@.service"
DEFINITION = {
    "driver": {"version": "580.173.02"},
    "dcgm": {"version": "4.5.2"},
    "uv": {"version": "0.13.9"},
    "python": {"version": "3.12"},
}
POLICY = {"replace": False, "secure_boot_enrolled": False, "kernel": "hold"}
WANTED: Facts = {
    "release": "2026.11",
    "definition": DEFINITION,
    "files": {NCCL: {"stage": "nccl", "sha256": "aa"}, MARK: {"stage": "nvidia_driver", "sha256": None}},
    "packages": {"cuda_toolkit": ["cuda-nvcc-13-0"], "vllm": ["g++"]},
    "held": ["cuda-nvcc-13-0"],
}


def host() -> Facts:
    """All that is read of a host without a difference."""
    gpu = fit()["gpu"] | {"runfile": False}
    gpu["kernel"] |= {"release": KERNEL, "headers": True}
    installed = {"version": "1", "status": "installed"}
    return {
        "gpu": gpu,
        "driver": {"differences": [], "reboot": []},
        "files": {NCCL: {"sha256": "aa", "changed": "2026-11-20 03:12"}, MARK: None},
        "packages": {"cuda-nvcc-13-0": installed | {"held": True}, "g++": installed | {"held": False}},
        "kernels": [KERNEL, "6.8.0-45-generic"],
        "releases": {"2026.11": DEFINITION | {"environment": {"digest": "ab"}}},
        "current": "2026.11",
        "uv": "0.13.9",
        "python": "3.12.3",
        "revision": {"altered": [], "files": {FETCH_UNIT: {"state": "same", "changed": "2026-11-20 03:12"}}},
        "venv": {"packages": 160, "diff": {}},
        "kernel": {"diff": {"before": "", "after": ""}},
        "instances": [{"unit": UNIT, "reason": "", "diff": {}}],
    }


def lines(found: Facts) -> list[str]:
    return [f"{entry.id} {entry.evidence} [{entry.stage}]" for entry in _drift.differences(WANTED, found)]


def test_a_host_as_its_release_says_has_no_drift() -> None:
    assert lines(host()) == []
    assert _drift.report("h20-08", "2026.11", []) == "h20-08  no drift  release 2026.11"


def test_the_plan_of_the_driver_stage_is_taken_as_it_is() -> None:
    found = host()
    found["gpu"]["packages"].append(package("nvidia-fabricmanager", "580.95.05-1", "nvidia") | {"held": False})
    found["driver"] = driver_plan(found["gpu"], DEFINITION, POLICY)
    said = lines(found)
    assert "PACKAGE nvidia-fabricmanager is 580.95.05, not 580.173.02 (release 2026.11) [nvidia_driver]" in said
    assert "HOLD nvidia-fabricmanager is not held (release 2026.11) [nvidia_driver]" in said


CASES: dict[str, tuple[Facts, str]] = {
    "reboot": (
        {"driver": {"differences": [], "reboot": ["module 580.95.05 is loaded, not 580.173.02"]}},
        "MODULE module 580.95.05 is loaded, not 580.173.02 [nvidia_driver]",
    ),
    "kernel": (
        {"kernels": ["6.8.0-90-generic", KERNEL]},
        f"KERNEL {KERNEL} runs, the next boot brings 6.8.0-90-generic []",
    ),
    "package": ({"packages.g++": None}, "PACKAGE g++ is not installed [vllm]"),
    "broken package": ({"packages.g++.status": "half-installed"}, "PACKAGE g++ is half-installed [vllm]"),
    "hold": ({"packages.cuda-nvcc-13-0.held": False}, "HOLD cuda-nvcc-13-0 is not held [cuda_toolkit]"),
    "uv": ({"uv": "0.13.8"}, "UV uv is 0.13.8, not 0.13.9 [python_venv]"),
    "no uv": ({"uv": ""}, "UV uv is not there, not 0.13.9 [python_venv]"),
    "python": ({"python": "3.1.2"}, "PYTHON the environment's Python is 3.1.2, not 3.12 [python_venv]"),
    "torn release": ({"releases": {}}, "RELEASE 2026.11 is not complete on the host [python_venv,vllm]"),
    "record": (
        {"releases": {"2026.11": DEFINITION | {"dcgm": {"version": "4.4.1"}}}},
        "RELEASE 2026.11 was installed with dcgm.version 4.4.1, its definition says 4.5.2 [vllm]",
    ),
    "current": ({"current": "2026.10"}, "CURRENT current names 2026.10, not 2026.11 [vllm_service]"),
    "no current": ({"current": ""}, "CURRENT current names nothing, not 2026.11 [vllm_service]"),
    "other version": (
        {"venv": {"packages": 160, "diff": {"before": "six==1.16\n", "after": "six==1.17\n"}}},
        "VENV six==1.16, the lock says six==1.17 [vllm]",
    ),
    "missing": (
        {"venv": {"packages": 160, "diff": {"before": "", "after": "six==1.17\n"}}},
        "VENV six is missing, the lock says six==1.17 [vllm]",
    ),
    "too much": (
        {"venv": {"packages": 160, "diff": {"before": "six==1.16\n", "after": ""}}},
        "VENV six==1.16, the lock says nothing of it [vllm]",
    ),
    "digest": (
        {"venv": {"packages": 160, "diff": {"before": "digest aa\n", "after": "digest bb\n"}}},
        "VENV files of packages are not those that the release was recorded with [vllm]",
    ),
    "altered": (
        {"venv": {"packages": 160, "diff": {"before": "lib/six.py\n", "after": ""}}},
        "VENV lib/six.py is not what its package brought [vllm]",
    ),
    "no lock": ({"venv": {"packages": 0}}, "VENV there is no lock to compare the environment with [vllm]"),
    "model": (
        {"revision.altered": ["/data/a.safetensors"]},
        "MODEL /data/a.safetensors is not what was proved [model]",
    ),
    "no program": (
        {f"revision:files:{FETCH_UNIT}": {"state": "absent", "changed": ""}},
        f"FILE {FETCH_UNIT} is not there [model]",
    ),
    "other program": (
        {f"revision:files:{FETCH_UNIT}": {"state": "other", "changed": "2026-11-20 03:12"}},
        f"FILE {FETCH_UNIT} is not what the stage writes (changed 2026-11-20 03:12) [model]",
    ),
    "old program": (
        {f"revision:files:{FETCH_UNIT}": {"state": "strange", "changed": "2026-11-20 03:12"}},
        f"FILE {FETCH_UNIT} should not be there (since 2026-11-20 03:12) [model]",
    ),
    "no file": ({f"files:{NCCL}": None}, f"FILE {NCCL} is not there [nccl]"),
    "file": (
        {f"files:{NCCL}": {"sha256": "bb", "changed": "2026-11-20 03:12"}},
        f"FILE {NCCL} is not what the stage writes (changed 2026-11-20 03:12) [nccl]",
    ),
    "mark": (
        {f"files:{MARK}": {"sha256": "bb", "changed": "2026-11-20 03:12"}},
        f"FILE {MARK} should not be there (since 2026-11-20 03:12) [nvidia_driver]",
    ),
    "setting": (
        {
            "kernel": {
                "changed": True,
                "diff": {"before": "/proc/sys/vm/swappiness = 60\n", "after": "/proc/sys/vm/swappiness = 10\n"},
            }
        },
        "SETTING /proc/sys/vm/swappiness = 60, wanted 10 [host_tuning]",
    ),
    "stopped": (
        {"instances": [{"unit": UNIT, "reason": f"{UNIT} is failed (failed)", "diff": {}}]},
        f"SERVICE {UNIT} is failed (failed) [vllm_service]",
    ),
    "older": (
        {"instances": [{"unit": UNIT, "reason": f"changed since the start: {NCCL}", "diff": {}}]},
        f"SERVICE {UNIT} changed since the start: {NCCL} [vllm_service]",
    ),
    "disabled": (
        {"instances": [{"unit": UNIT, "reason": "", "diff": {"after": f"enable {UNIT}\n"}}]},
        f"SERVICE {UNIT} is not enabled [vllm_service]",
    ),
    "fabric": (
        {"gpu.fabric_manager.active": False},
        "SERVICE nvidia-fabricmanager.service does not run [nvidia_driver]",
    ),
    "built": (
        {"gpu.module.installed_version": "580.95.05"},
        "MODULE the module that is loaded next is 580.95.05, not 580.173.02 [nvidia_driver]",
    ),
}


@pytest.mark.parametrize(("changes", "line"), CASES.values(), ids=CASES)
def test_each_difference_is_named_once(changes: Facts, line: str) -> None:
    found = copy.deepcopy(host())
    for place, value in changes.items():
        # A colon before a key that has dots in it.
        *parents, last = place.split(":") if ":" in place else place.split(".")
        target = found
        for parent in parents:
            target = target[parent]
        if value is None and last not in found["files"]:
            del target[last]
        else:
            target[last] = value
    assert lines(found) == [line]


def test_the_table_has_a_line_a_difference_and_the_summary_the_one_command() -> None:
    different = [
        _drift.Difference("PACKAGE", "g++ is not installed", "vllm"),
        _drift.Difference("FILE", f"{NCCL} is not there", "nccl"),
        _drift.Difference("KERNEL", "a runs, the next boot brings b", "", "reboot"),
    ]
    assert _drift.report("h20-07", "2026.11", different).splitlines() == [
        "h20-07  DRIFT  release 2026.11",
        "  PACKAGE  g++ is not installed            -> --tags vllm",
        "  FILE     /etc/nccl.conf is not there     -> --tags nccl",
        "  KERNEL   a runs, the next boot brings b  -> reboot",
    ]
    assert (
        _drift.summary(different) == "drift: PACKAGE, FILE, KERNEL -> ansible-playbook h20.fleet.site --tags vllm,nccl"
    )


def test_what_cannot_be_rendered_is_said_and_stops_nothing() -> None:
    wanted = WANTED | {"files": {NCCL: {"stage": "nccl", "sha256": None, "error": "'x' is undefined"}}}
    [entry] = _drift.differences(wanted, host())
    assert entry.evidence == f"what {NCCL} should hold cannot be told: 'x' is undefined"


def test_kernels_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("6.8.0-9-generic", "6.8.0-45-generic", "6.11.0-8-generic", "6.1.0-26-amd64"):
        (tmp_path / f"vmlinuz-{name}").touch()
    (tmp_path / "vmlinuz").symlink_to("vmlinuz-6.1.0-26-amd64")
    assert drift_info.kernels(tmp_path) == ["6.11.0-8-generic", "6.8.0-45-generic", "6.8.0-9-generic", "6.1.0-26-amd64"]


def test_the_module_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    release = tmp_path / "opt/releases/a"
    release.mkdir(parents=True)
    (release / "release.json").write_text(json.dumps({"release": "a", "uv": {"version": "1"}}), encoding="utf-8")
    (release / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.12.3\n", encoding="utf-8")
    (tmp_path / "opt/current").symlink_to("releases/a")
    file, absent = tmp_path / "file", tmp_path / "absent"
    file.write_text("content\n", encoding="utf-8")
    answer = run_module(
        "drift_info", files=[str(file), str(absent)], root=str(tmp_path / "opt"), venv=str(release), uv=str(absent)
    )
    assert answer["files"][str(absent)] is None
    assert answer["files"][str(file)]["sha256"] == "434728a410a78f56fc1b5899c3593436e61ab0c731e9072d95e96db290205e53"
    assert (answer["current"], answer["releases"]) == ("a", {"a": {"uv": {"version": "1"}}})
    assert (answer["python"], answer["uv"], answer["packages"]) == ("3.12.3", "", {})
    assert answer["changed"] is False
