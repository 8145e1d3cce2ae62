# SPDX-License-Identifier: Apache-2.0
"""wheel_build: one wheel built from its source and put among the wheels of a mirror, with a uv that stands in for the real one."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.plugins.support import run_module, write_program

PROGRAM = Path(__file__).parents[3] / "roles/vllm/files/wheel_build.py"
sys.path.insert(0, str(PROGRAM.parent))
wheel_build: Any = importlib.import_module(PROGRAM.stem)

#: A uv whose environment has a Python that plays pip, and whose build gives the wheel that it is told to.
UV = """
import os, tarfile
(HERE / "calls").open("a").write(" ".join(ARGUMENTS[:2]) + "\\n")
if ARGUMENTS[0] == "venv":
    python = pathlib.Path(ARGUMENTS[-1]) / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\\nfor dest; do :; done\\nmkdir -p $dest source-1 && tar -czf $dest/vllm-0.32.0.tar.gz source-1\\n")
    python.chmod(0o755)
elif ARGUMENTS[0] == "build":
    told = json.loads((HERE / "told.json").read_text())
    if told["rc"]:
        sys.exit(told["rc"])
    out = pathlib.Path(ARGUMENTS[ARGUMENTS.index("--out-dir") + 1])
    out.mkdir()
    (out / told["wheel"]).write_text(told["content"])
    seen = {name: os.environ.get(name, "") for name in ("MAX_JOBS", "VLLM_TARGET_DEVICE", "SETUPTOOLS_SCM_PRETEND_VERSION", "EXTRA")}
    (HERE / "seen.json").write_text(json.dumps(seen))
"""
LOCK = (
    "torch==2.13.0+cpu \\\n    --hash=sha256:00\n"
    "vllm==0.32.0+cpu \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n"
    "watchfiles==1.3.0 \\\n    --hash=sha256:03\n"
)
WHEEL = "vllm-0.32.0+empty-cp311-cp311-linux_x86_64.whl"


class Build:
    """A build: its job and a uv that was told what to give."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "job.json"
        self.uv = write_program(root / "uv/uv", UV)
        for folder in ("wheels", "locks", "build"):
            (root / folder).mkdir()
        (root / "lock.txt").write_text(LOCK)
        (root / "build.txt").write_text("")
        self.content: dict[str, Any] = {
            "source": {"sdist": {"requirement": "vllm==0.32.0", "sha256": "00"}},
            "version": "0.32.0",
            "target_device": "empty",
            "uv": str(self.uv),
            "python": "3.11",
            "cuda_home": str(root / "cuda"),
            "memory_per_job_gib": 0.001,
            "folder": str(root / "build"),
            "build_lock": str(root / "build.txt"),
            "lock": str(root / "lock.txt"),
            "built_lock": str(root / "locks/a.txt"),
            "wheels": str(root / "wheels"),
            "environment": {"EXTRA": 1},
        }
        self.tell()
        self.change()

    def change(self, **fields: Any) -> None:
        self.content.update(fields)
        self.path.write_text(json.dumps(self.content))

    def tell(self, content: str = "wheel", wheel: str = WHEEL, rc: int = 0) -> None:
        (self.uv.parent / "told.json").write_text(json.dumps({"content": content, "wheel": wheel, "rc": rc}))

    def run(self) -> int:
        return int(wheel_build.main(["build", str(self.path)]))

    @property
    def state(self) -> dict[str, Any]:
        return dict(wheel_build.inspect(wheel_build.Job(self.path)))

    @property
    def calls(self) -> list[str]:
        path = self.uv.parent / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def seen(self) -> dict[str, str]:
        return dict(json.loads((self.uv.parent / "seen.json").read_text()))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def test_a_wheel_is_built_once_and_pinned_by_its_hash(build: Build) -> None:
    assert (build.state["complete"], build.state["to_build"], build.state["obstacles"]) == (False, True, [])
    assert build.run() == 0
    digest = hashlib.sha256(b"wheel").hexdigest()
    assert [path.name for path in (build.root / "wheels").iterdir()] == [WHEEL]
    pin = f"vllm==0.32.0+empty \\\n    --hash=sha256:{digest}\n"
    assert (build.root / "locks/a.txt").read_text() == LOCK[: LOCK.index("vllm")] + pin + LOCK[LOCK.index("watch") :]
    assert build.calls == ["venv --quiet", "pip sync", "build --wheel"]
    assert (build.seen["VLLM_TARGET_DEVICE"], build.seen["EXTRA"], build.seen["SETUPTOOLS_SCM_PRETEND_VERSION"]) == (
        "empty",
        "1",
        "",
    )
    assert not (build.root / "build/work").exists()
    state = build.state
    assert (state["complete"], state["to_build"], state["wheel"]["sha256"]) == (True, False, digest)
    assert build.run() == 0
    assert len(build.calls) == 3


def test_a_second_release_of_the_same_inputs_takes_the_wheel_that_is_there(build: Build) -> None:
    build.run()
    build.change(built_lock=str(build.root / "locks/b.txt"))
    assert (build.state["complete"], build.state["to_build"]) == (False, False)
    assert build.run() == 0
    assert len(build.calls) == 3
    assert (build.root / "locks/b.txt").read_text() == (build.root / "locks/a.txt").read_text()


@pytest.mark.parametrize("how", ["deleted", "altered"])
def test_a_wheel_that_is_gone_or_altered_is_built_again(build: Build, how: str) -> None:
    build.run()
    wheel = build.root / "wheels" / WHEEL
    wheel.unlink() if how == "deleted" else wheel.write_text("evil")
    assert build.state["to_build"]
    assert build.run() == 0
    assert wheel.read_text() == "wheel"


def test_a_failed_build_leaves_nothing_for_others_and_is_done_again(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build.tell(rc=3)
    assert build.run() == 1
    assert "error: " in capsys.readouterr().err
    assert not list((build.root / "wheels").iterdir())
    assert not list((build.root / "locks").iterdir())
    build.tell()
    assert build.run() == 0


def test_a_wheel_of_another_version_is_refused(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build.tell(wheel=WHEEL.replace("0.32.0", "0.32.01"))
    assert build.run() == 1
    assert "the release wants vllm 0.32.0 -> " in capsys.readouterr().err
    assert not list((build.root / "wheels").iterdir())


def test_a_wheel_that_another_release_installs_is_not_replaced(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build.run()
    build.change(folder=str(build.root / "other"), built_lock=str(build.root / "locks/b.txt"))
    (build.root / "other").mkdir()
    build.tell(content="other")
    assert build.run() == 1
    assert "release a installs it -> " in capsys.readouterr().err
    assert (build.root / "wheels" / WHEEL).read_text() == "wheel"


def test_what_stands_against_a_build_is_said_before_it(build: Build) -> None:
    build.change(target_device="cuda", memory_per_job_gib=1e6)
    nvcc, memory = build.state["obstacles"]
    assert "nvcc is not there -> " in nvcc
    assert "vllm_build_memory_per_job_gib" in memory
    assert build.run() == 1
    assert build.calls == []


def test_jobs_are_bounded_by_memory_and_by_cores(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel_build, "available", lambda: 64 * wheel_build.GIB)
    monkeypatch.setattr(wheel_build.os, "cpu_count", lambda: 20)
    for gib, jobs in ((6, "10"), (1, "20"), (40, "1")):
        build.change(memory_per_job_gib=gib)
        assert wheel_build.variables(wheel_build.Job(build.path))["MAX_JOBS"] == jobs


def test_a_commit_is_fetched_by_its_whole_name(build: Build, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@b.test"]
    (origin / "setup.py").write_text("")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "one"]):
        subprocess.run([*git, *command], check=True)
    revision = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    build.change(source={"git": {"url": str(origin), "revision": revision}, "sdist": None})
    assert build.run() == 0
    assert build.seen["SETUPTOOLS_SCM_PRETEND_VERSION"] == "0.32.0"
    build.change(source={"git": {"url": str(origin), "revision": "0" * 40}}, folder=str(tmp_path / "locks"))
    assert build.run() == 1


def test_the_module_starts_the_unit_only_where_something_is_missing(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = write_program(
        build.root / "bin/systemctl",
        f"""
import subprocess
(HERE / "calls").open("a").write(" ".join(ARGUMENTS) + "\\n")
if ARGUMENTS[0] == "start":
    sys.exit(subprocess.run([sys.executable, {str(PROGRAM)!r}, "build", {str(build.path)!r}], stderr=(HERE / "journal").open("w")).returncode)""",
    )
    write_program(build.root / "bin/journalctl", "print((HERE / 'journal').read_text())")
    monkeypatch.setenv("PATH", f"{systemctl.parent}:/usr/bin:/bin")
    told: dict[str, Any] = {"program": str(PROGRAM), "job": str(build.path), "unit": "vllm-build@a.service"}
    absent = run_module("source_wheel", check=True, **told | {"job": "/nonexistent"})
    assert (absent["changed"], absent["wheel"]) == (True, None)
    assert run_module("source_wheel", check=True, **told)["built"] is True
    build.tell(rc=2)
    assert "build ended with status 2" in run_module("source_wheel", **told)["msg"]
    build.tell()
    first, second = run_module("source_wheel", **told), run_module("source_wheel", **told)
    assert (first["changed"], first["built"], first["wheel"]["wheel"]) == (True, True, WHEEL)
    assert (second["changed"], second["built"], second["wheel"]) == (False, False, first["wheel"])
    starts = (systemctl.parent / "calls").read_text().splitlines().count("start vllm-build@a.service")
    assert starts == 2
    build.change(target_device="cuda", folder=str(build.root / "locks"))
    assert "nvcc is not there" in run_module("source_wheel", **told)["msg"]
