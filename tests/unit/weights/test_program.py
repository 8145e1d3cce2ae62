# SPDX-License-Identifier: Apache-2.0
"""The program as a unit runs it: its verbs and exit codes, and what a kill at any time leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _weights
from unit.weights.support import CONTENT, LARGE, WEIGHTS, Hub, Place, contents, one_bit, write

VERBS = ("fetch", "inspect", "prove", "check", "firewall")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package under the name that it has on a host."""
    [package] = _weights.__path__
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/weights").symlink_to(package)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def command(*arguments: object) -> list[str]:
    """With nothing but the standard library."""
    return [sys.executable, "-SB", "-m", "weights", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("installed")
def test_a_revision_is_fetched_inspected_and_proved(place: Place) -> None:
    job = place.job()
    fetched = run("fetch", place.path)
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert f"{job.destination} is complete: {len(CONTENT)} files, " in fetched.stdout
    assert contents(place.destination) == CONTENT
    inspected = run("inspect", place.path)
    assert (inspected.returncode, json.loads(inspected.stdout)["complete"]) == (0, True)
    assert run("prove", place.path).returncode == run("fetch", place.path).returncode == 0
    one_bit(place.destination / "config.json")
    proved = run("prove", place.path)
    assert (proved.returncode, proved.stderr.count("\n")) == (1, 1)
    assert proved.stderr.startswith(f"error: {place.destination}: config.json has git-sha1 ")


@pytest.mark.usefixtures("installed")
def test_a_fetch_that_fails_says_why_in_its_last_line(hub: Hub, place: Place) -> None:
    hub.served.faults.set({f"*{LARGE}": "missing"})
    place.job()
    failed = run("fetch", place.path)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(f"error: no source has {LARGE}: hub {hub.url}: HTTP 404")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "arguments", [(), ("fetch",), ("other", "x"), ("prove", "x", "y"), ("firewall", "x", "sideways")]
)
def test_what_is_not_understood_is_answered_with_the_usage(arguments: tuple[str, ...]) -> None:
    used = run(*arguments)
    assert used.returncode == 2
    assert all(f"python3 -m weights {verb} " in used.stderr for verb in VERBS)


@pytest.mark.usefixtures("installed")
def test_a_job_or_manifest_that_cannot_be_read_is_named(place: Place, tmp_path: Path) -> None:
    job = place.job()
    job.manifest.write_text("{}")
    for path, told in ((place.path, f"error: {job.manifest} is no manifest"), (tmp_path / "absent", "error: ")):
        for verb in ("inspect", "fetch", "prove"):
            lacking = run(verb, path)
            assert (lacking.returncode, lacking.stderr.splitlines()[-1].startswith(told)) == (1, True)


@pytest.mark.usefixtures("installed")
def test_the_headers_of_a_folder_are_checked(tmp_path: Path) -> None:
    header = json.dumps({"a": {"data_offsets": [0, 4]}}).encode()
    write(tmp_path / "model", {LARGE: struct.pack("<Q", len(header)) + header + bytes(4)})
    assert run("check", tmp_path / "model").returncode == 0
    one = tmp_path / "model" / LARGE
    one.write_bytes(one.read_bytes()[:-1])
    torn = run("check", tmp_path / "model")
    assert torn.returncode == 1
    assert torn.stderr.startswith(f"error: {tmp_path / 'model'}: {LARGE} has ")


@pytest.mark.usefixtures("installed")
def test_a_fetch_ends_every_process_before_itself(place: Place) -> None:
    place.job()
    script = """
import sys
from pathlib import Path
from weights.__main__ import main
main(["fetch", sys.argv[1]])
print("left:", *(path.read_text() for path in Path("/proc/self/task").glob("*/children")))
"""
    ended = subprocess.run(
        [sys.executable, "-SB", "-c", script, place.path], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1].split() == ["left:"]


# Killed


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another process."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def slow(hub: Hub, place: Place, installed: Path) -> Iterator[subprocess.Popen[str]]:
    """A fetch that has got a part of the large file and waits for the rest."""
    assert installed.exists()
    hub.served.faults.set({f"/cdn/*{LARGE}": "hang"})
    job = place.job(limits={"stall": 600})
    with subprocess.Popen(
        command("fetch", place.path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as it:
        part = job.partial / ".parts" / LARGE
        until(lambda: part.exists() and part.stat().st_size == len(WEIGHTS) // 2)
        assert len(children(it.pid)) > 1
        try:
            yield it
        finally:
            it.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_fetch_that_is_killed_leaves_no_process_and_goes_on_later(
    hub: Hub, place: Place, slow: subprocess.Popen[str], number: signal.Signals
) -> None:
    workers = children(slow.pid)
    os.kill(slow.pid, number)
    hub.served.faults.clear()
    assert slow.wait(timeout=30) == -number
    until(lambda: not any(map(running, workers)))
    assert not place.destination.exists()
    assert json.loads(place.job().progress.read_text())["phase"] in ("proving", "fetching")
    again = run("fetch", place.path)
    assert (again.returncode, again.stderr) == (0, "")
    assert contents(place.destination) == CONTENT
    progress = json.loads(place.job().progress.read_text())
    assert progress["origin"] <= sum(map(len, CONTENT.values())) - len(WEIGHTS) // 2
