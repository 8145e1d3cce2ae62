# SPDX-License-Identifier: Apache-2.0
"""vllm_clear: what is in the way of a start is named with its remedy, and nothing else is."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
OWN = "vllm@tiny.service"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The program beside what it imports, as the role installs them."""
    library = tmp_path_factory.mktemp("library")
    (library / "gpus").symlink_to(ROOT / "plugins/module_utils")
    sys.path[:0] = [str(library), str(ROOT / "roles/vllm_service/files")]
    return importlib.import_module("vllm_clear")


@pytest.fixture
def vllm_clear(program: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(program, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(program, "POLL_SECONDS", 0.01)
    return program


def process(vllm_clear: Any, **changed: Any) -> Any:
    return vllm_clear.Process(
        **{"pid": 4242, "user": "bob", "unit": "session-2.scope", "command": "python3 train.py"} | changed
    )


def gpu(**changed: Any) -> dict[str, Any]:
    healthy = {
        "address": "0000:18:00.0",
        "recovery_action": "None",
        "fabric_state": "Completed",
        "fabric_status": "Success",
        "memory_used_mib": 4,
        "processes": [],
    }
    return healthy | changed


def test_a_process_is_described_as_a_person_would_look_for_it(vllm_clear: Any) -> None:
    found = vllm_clear.process(os.getpid())
    assert found.pid == os.getpid()
    assert "pytest" in found.command or "python" in found.command
    assert vllm_clear.process(2**22 + 1) is None


def test_a_port_that_is_taken_names_who_holds_it(vllm_clear: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        [error] = vllm_clear.port_taken("0.0.0.0", port)  # noqa: S104 (the address of a configuration)
    assert error.startswith(f"port {port} is held by ")
    assert f"(pid {os.getpid()}, user " in error
    assert error.endswith(" -> stop it, or give the instance another port")
    assert [*vllm_clear.port_taken("127.0.0.1", port)] == []


@pytest.mark.parametrize(
    ("user", "unit", "swept"),
    [
        ("vllm", "session-2.scope", True),
        ("vllm", "fault.service", True),
        ("vllm", OWN, True),
        ("vllm", "vllm@other.service", False),
        ("vllm", "vllm-watchdog@other.service", False),
        ("vllm", "h20-fleet-benchmark.service", False),
        ("root", "session-2.scope", False),
    ],
)
def test_orphans_are_the_users_own_that_no_instance_owns(
    vllm_clear: Any, user: str, unit: str, swept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = process(vllm_clear, user=user, unit=unit)
    monkeypatch.setattr(vllm_clear, "processes", lambda: iter([found]))
    assert vllm_clear.orphans(OWN) == ([found] if swept else [])


def test_an_orphan_is_ended_and_told(
    vllm_clear: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm_clear, "SETTLE_SECONDS", 5)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as orphan:
        monkeypatch.setattr(vllm_clear, "orphans", lambda _own: [process(vllm_clear, pid=orphan.pid, user="vllm")])
        assert [*vllm_clear.sweep(OWN)] == []
        assert orphan.wait() == -9
    assert f"ended an orphan: python3 train.py (pid {orphan.pid}, user vllm" in capsys.readouterr().out


def test_an_orphan_that_does_not_end_is_a_refusal(vllm_clear: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = process(vllm_clear, user="vllm")
    monkeypatch.setattr(vllm_clear, "orphans", lambda _own: [stuck])
    monkeypatch.setattr(vllm_clear, "process", lambda _pid: stuck)
    monkeypatch.setattr(vllm_clear.os, "kill", lambda *_arguments: None)
    assert [*vllm_clear.sweep(OWN)] == [f"an orphan does not end: {stuck} hangs in the driver -> reboot the host"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"fabric_state": None, "fabric_status": None}, []),
        ({"recovery_action": None}, []),
        ({"recovery_action": "Reset"}, ["the driver asks for a recovery of GPU 0000:18:00.0: Reset -> "]),
        (
            {"fabric_state": "In Progress", "fabric_status": None},
            ["the fabric of GPU 0000:18:00.0 is In Progress, no status -> "],
        ),
        ({"fabric_status": "Failure"}, ["the fabric of GPU 0000:18:00.0 is Completed, Failure -> "]),
        ({"memory_used_mib": 135009}, ["GPU 0000:18:00.0 holds 135009 MiB of no process -> reset it"]),
        (
            {"memory_used_mib": 135009, "processes": [{"pid": 4242, "name": "python3"}]},
            ["GPU 0000:18:00.0 is held by python3 train.py (pid 4242, user bob, session-2.scope) -> end it"],
        ),
        (
            {"memory_used_mib": 9000, "processes": [{"pid": 7, "name": "elsewhere"}]},
            ["GPU 0000:18:00.0 is held by elsewhere (pid 7, not seen from this host's own processes) -> end it"],
        ),
        ({"memory_used_mib": 9000, "processes": [{"pid": 1, "name": "VLLM::Worker"}]}, []),
    ],
)
def test_a_gpu_in_the_way_is_named_with_its_remedy(
    vllm_clear: Any, changed: dict[str, Any], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {4242: process(vllm_clear), 1: process(vllm_clear, pid=1, user="vllm", unit="vllm@other.service")}
    monkeypatch.setattr(vllm_clear, "process", known.get)
    monkeypatch.setattr(vllm_clear, "gpus", lambda: [gpu(**changed)])
    errors = vllm_clear.gpus_in_the_way()
    assert len(errors) == len(said)
    assert all(error.startswith(start) for error, start in zip(errors, said, strict=True)), errors


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo No devices were found; exit 6", "No devices were found"), ("exec sleep 5", "did not answer within")],
)
def test_an_nvidia_smi_that_does_not_answer_is_a_refusal(
    vllm_clear: Any, script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(vllm_clear, "ANSWER_SECONDS", 0.5)
    [error] = vllm_clear.gpus_in_the_way()
    assert said in error
    assert " -> " in error


def test_a_full_disk_is_a_refusal(vllm_clear: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_clear, "WRITTEN", (str(tmp_path),))
    monkeypatch.setattr(vllm_clear, "FREE_MIB", 2**40)
    [error] = vllm_clear.full_disks()
    assert f"{tmp_path} has " in error
    monkeypatch.setattr(vllm_clear, "FREE_MIB", 0)
    assert [*vllm_clear.full_disks()] == []


def test_all_that_is_in_the_way_is_told_at_once(
    vllm_clear: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"host": "127.0.0.1", "port": 8000}))
    asked: list[str] = []

    def sweep(own: str) -> list[str]:
        asked.append(own)
        return []

    monkeypatch.setattr(vllm_clear, "sweep", sweep)
    monkeypatch.setattr(vllm_clear, "port_taken", lambda *_arguments: iter(["one -> a"]))
    monkeypatch.setattr(vllm_clear, "full_disks", lambda: iter(["two -> b"]))
    monkeypatch.setattr(vllm_clear, "gpus_in_the_way", list)
    assert vllm_clear.main([str(config)]) == 1
    assert asked == [OWN]
    assert capsys.readouterr().err == "error: one -> a\nerror: two -> b\n"
    # Without an API no port is taken.
    config.write_text(yaml.safe_dump({"host": "127.0.0.1", "port": 8000, "headless": True}))
    assert vllm_clear.main([str(config)]) == 1
    assert capsys.readouterr().err == "error: two -> b\n"
