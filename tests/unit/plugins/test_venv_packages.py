# SPDX-License-Identifier: Apache-2.0
"""venv_packages: a lock compared with what is installed, and uv called where they differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.modules import venv_packages
from unit.plugins.support import run_module, write_program

LOCK = """\
# made by uv
--index-url https://index.test/simple
foo-bar==1.0 \\
    --hash=sha256:00 \\
    --hash=sha256:01
    # via baz
baz==2.1.0+cpu ; python_version >= "3.11" \\
    --hash=sha256:02
Zope.Interface==7.0.post1
"""
PINS = {"foo-bar": "1.0", "baz": "2.1.0+cpu", "zope-interface": "7.0.post1"}

#: A uv that records its command line, says what it is told to, and installs what it is told to.
UV = """
(HERE / "called.json").write_text(json.dumps(ARGUMENTS))
wanted = json.loads((HERE / "told.json").read_text())
site = pathlib.Path(ARGUMENTS[ARGUMENTS.index("--python") + 1]).parents[1] / "lib/python3.11/site-packages"
for name in wanted["remove"]:
    (site / name).rmdir()
for name in wanted["install"]:
    (site / name).mkdir(parents=True)
print(wanted["stderr"], file=sys.stderr)
sys.exit(wanted["rc"])
"""


@pytest.mark.parametrize("name", ["Foo.Bar", "foo_bar", "FOO--bar", "foo-_.bar"])
def test_a_name_is_compared_as_indexes_do(name: str) -> None:
    assert venv_packages.normalized(name) == "foo-bar"


def test_a_lock_is_read_by_its_pins() -> None:
    assert venv_packages.locked(LOCK) == PINS
    assert venv_packages.locked("") == {}


class Environment:
    """A virtual environment with its lock, its record and a uv."""

    def __init__(self, root: Path) -> None:
        self.venv, self.lock, self.record = root / "venv", root / "lock.txt", root / "venv/release.json"
        self.uv = write_program(root / "uv/uv", UV)
        self.lock.write_text(LOCK)
        self.tell()

    @property
    def site(self) -> Path:
        return self.venv / "lib/python3.11/site-packages"

    def install(self, *names: str) -> None:
        self.site.mkdir(parents=True)
        for name in names:
            (self.site / f"{name}.dist-info").mkdir()
        self.record.touch()

    def tell(self, rc: int = 0, stderr: str = "", install: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> None:
        """What uv is to do when it is called."""
        told = {
            "install": [f"{name}.dist-info" for name in install],
            "remove": [f"{name}.dist-info" for name in remove],
        }
        (self.uv.parent / "told.json").write_text(json.dumps(told | {"rc": rc, "stderr": stderr}))

    @property
    def called(self) -> list[str]:
        """The arguments that uv was called with; [] where it was not."""
        path = self.uv.parent / "called.json"
        return list(json.loads(path.read_text())) if path.exists() else []

    def run(self, *, check: bool = False) -> dict[str, Any]:
        paths = {"venv": self.venv, "lock": self.lock, "record": self.record, "uv": self.uv}
        return run_module("venv_packages", check=check, **{name: str(path) for name, path in paths.items()})


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


WHOLE = ("foo_bar-1.0", "baz-2.1.0+cpu", "zope.interface-7.0.post1")


def test_what_is_installed_is_read_without_asking_anybody(environment: Environment) -> None:
    assert venv_packages.installed(environment.venv) == {}
    environment.install(*WHOLE)
    (environment.site / "foo_bar").mkdir()
    assert venv_packages.installed(environment.venv) == PINS


@pytest.mark.parametrize("check", [False, True])
def test_an_environment_that_satisfies_its_lock_is_left_alone(environment: Environment, *, check: bool) -> None:
    environment.install(*WHOLE)
    result = environment.run(check=check)
    assert (result["changed"], result["packages"], result["diff"]) == (False, 3, {})
    assert (environment.called, environment.record.exists()) == ([], True)


@pytest.mark.parametrize(
    ("found", "before", "after"),
    [
        ((), "", "baz==2.1.0+cpu\nfoo-bar==1.0\nzope-interface==7.0.post1\n"),
        (WHOLE[1:], "", "foo-bar==1.0\n"),
        (("foo_bar-0.9", *WHOLE[1:]), "foo-bar==0.9\n", "foo-bar==1.0\n"),
        ((*WHOLE, "left_over-3.0"), "left-over==3.0\n", ""),
    ],
    ids=["empty", "absent", "older", "left over"],
)
def test_a_difference_calls_uv_once_and_shows_the_pins(
    environment: Environment, found: tuple[str, ...], before: str, after: str
) -> None:
    environment.install(*found)
    planned = environment.run(check=True)
    assert (environment.called, environment.record.exists()) == ([], True)
    environment.tell(install=tuple({*WHOLE} - {*found}), remove=tuple({*found} - {*WHOLE}))
    result = environment.run()
    for shown in (planned, result):
        assert (shown["changed"], shown["packages"]) == (True, 3)
        assert (shown["diff"]["before"], shown["diff"]["after"]) == (before, after)
    python = f"{environment.venv}/bin/python"
    options = ["--no-progress", "--require-hashes", "--compile-bytecode", "--python", python]
    assert environment.called == ["pip", "sync", *options, str(environment.lock)]
    assert not environment.record.exists()
    assert environment.run()["changed"] is False


def test_check_mode_on_a_host_without_anything_reports_a_change(environment: Environment) -> None:
    environment.lock.unlink()
    assert environment.run(check=True)["changed"] is True


def test_a_failing_uv_is_quoted_and_leaves_no_record(environment: Environment) -> None:
    environment.install()
    environment.tell(
        rc=1, stderr="Resolved 3 packages\n  × Failed to download `baz==2.1.0+cpu`\n  ╰─▶ no route to host"
    )
    result = environment.run()
    assert result["msg"] == (
        f"uv could not install {environment.lock} into {environment.venv} -> Failed to download `baz==2.1.0+cpu` no route to host"
    )
    assert not environment.record.exists()


def test_a_uv_that_installs_something_else_is_found_out(environment: Environment) -> None:
    environment.install(WHOLE[0])
    environment.tell(install=("baz-2.0",))
    assert (
        environment.run()["msg"] == f"{environment.venv} still differs from {environment.lock} in: baz, zope-interface"
    )


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("warning: x\nerror: Hash mismatch for `a`\n\nExpected:\n  00\n", "error: Hash mismatch for `a` Expected: 00"),
        ("  × No solution found:\n  ╰─▶ Because a\n      b.\n", "No solution found: Because a b."),
        ("one\ntwo\nthree\nfour\n", "two three four"),
        ("", ""),
    ],
)
def test_the_reason_is_what_uv_says_from_its_first_error_on(stderr: str, reason: str) -> None:
    assert venv_packages._reason(stderr) == reason  # noqa: SLF001 (its text is what an operator reads)
