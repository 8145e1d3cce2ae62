# SPDX-License-Identifier: Apache-2.0
"""venv_packages: a lock compared with what is installed, and uv called where they differ."""

from __future__ import annotations

import base64
import hashlib
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
    (site / name).mkdir(parents=True, exist_ok=True)
    for path, content in wanted["files"].items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
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

    def fill(self, name: str, files: dict[str, str]) -> dict[str, str]:
        """Give an installed distribution files with a RECORD, and what of the host belongs to it; all its files by path."""
        hashes = {
            path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()
        }
        lines = [f"{path},sha256={digest.decode().rstrip('=')},{len(files[path])}\n" for path, digest in hashes.items()]
        lines += [f"{name}.dist-info/RECORD,,\n", "pkg/__pycache__/a.cpython-311.pyc,,\n"]
        everything = files | {f"{name}.dist-info/RECORD": "".join(lines)}
        for path, text in everything.items():
            (self.site / path).parent.mkdir(parents=True, exist_ok=True)
            (self.site / path).write_text(text)
        return everything

    def remember(self, digest: str) -> None:
        self.record.write_text(json.dumps({"release": "a", "environment": {"packages": 3, "digest": digest}}))

    def tell(
        self,
        rc: int = 0,
        stderr: str = "",
        install: tuple[str, ...] = (),
        remove: tuple[str, ...] = (),
        files: dict[str, str] | None = None,
    ) -> None:
        """What uv is to do when it is called."""
        told = {
            "install": [f"{name}.dist-info" for name in install],
            "remove": [f"{name}.dist-info" for name in remove],
            "files": files or {},
        }
        (self.uv.parent / "told.json").write_text(json.dumps(told | {"rc": rc, "stderr": stderr}))

    @property
    def called(self) -> list[str]:
        """The arguments that uv was called with; [] where it was not."""
        path = self.uv.parent / "called.json"
        return list(json.loads(path.read_text())) if path.exists() else []

    def run(self, *, check: bool = False, **options: bool) -> dict[str, Any]:
        paths = {"venv": self.venv, "lock": self.lock, "record": self.record, "uv": self.uv}
        return run_module("venv_packages", check=check, **{name: str(path) for name, path in paths.items()}, **options)


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


TAMPERED = """\
Resolved 3 packages in 1ms
error: Failed to download `baz==2.1.0+cpu`
  cause: Hash mismatch for `baz==2.1.0+cpu`

         Expected:
           sha256:02

         Computed:
           sha256:ff
"""
MISSING = """\
error: No solution found when resolving dependencies
  cause: Because foo-bar was not found in the provided package locations and you require foo-bar==1.0, we can conclude that your requirements are
         unsatisfiable.
"""
OLD = "  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of foo-bar==1.0 and you require foo-bar==1.0, no.\n"
CUT_OFF = """\
error: Failed to download `baz==2.1.0+cpu`
  cause: Failed to extract archive: baz-2.1.0+cpu-py3-none-any.whl
  cause: unexpected end of file
"""
AWAY = (
    "error: Failed to read `--find-links` URL: http://mirror.test/wheels/\n  cause: Connection refused (os error 111)\n"
)


@pytest.mark.parametrize(
    ("stderr", "finding", "remedy"),
    [
        (
            TAMPERED,
            "the file of baz 2.1.0+cpu from http://mirror.test/wheels/ has the hash sha256:ff, which is not in the lock",
            "tampered",
        ),
        (
            MISSING,
            "no wheel of foo-bar 1.0 that fits this host is in http://mirror.test/wheels/",
            "run the mirror's play again",
        ),
        (
            OLD,
            "no wheel of foo-bar 1.0 that fits this host is in http://mirror.test/wheels/",
            "run the mirror's play again",
        ),
        (
            CUT_OFF,
            "the file of baz 2.1.0+cpu from http://mirror.test/wheels/ is damaged or cut off: ",
            "replace it at its source",
        ),
        (AWAY, "uv could not install the lock from http://mirror.test/wheels/: error: Failed to read", "mend that"),
    ],
    ids=["tampered", "missing", "missing on an index", "cut off", "source away"],
)
def test_a_failing_uv_is_named_with_package_source_and_remedy_and_leaves_no_record(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, stderr: str, finding: str, remedy: str
) -> None:
    monkeypatch.setenv("UV_FIND_LINKS", "http://operator:secret@mirror.test/wheels/")
    environment.install()
    environment.tell(rc=1, stderr=stderr)
    message = environment.run(no_index=True)["msg"]
    assert message.startswith(f"{environment.venv}: {finding}")
    assert remedy in message.partition(" -> ")[2]
    assert "secret" not in message
    assert "--no-index" in environment.called
    assert not environment.record.exists()


@pytest.mark.parametrize(
    ("variables", "no_index", "named"),
    [
        ({}, False, "the default index"),
        ({"UV_FIND_LINKS": "/wheels"}, False, "/wheels, the default index"),
        (
            {"UV_DEFAULT_INDEX": "https://u:p@index.test/simple", "UV_INDEX": "file:///a file:///b"},
            False,
            "https://index.test/simple, file:///a, file:///b",
        ),
        (
            {"UV_DEFAULT_INDEX": "https://index.test/simple", "UV_FIND_LINKS": "http://m:8480/wheels/"},
            True,
            "http://m:8480/wheels/",
        ),
    ],
)
def test_sources_are_where_uv_looks(variables: dict[str, str], *, no_index: bool, named: str) -> None:
    assert venv_packages._sources(variables, no_index=no_index) == named  # noqa: SLF001 (its text is what an operator reads)


FILES = {"pkg/a.py": "a = 1\n", "pkg/b.py": "b = 2\n"}


def test_a_digest_tells_content_and_nothing_of_the_host(environment: Environment, tmp_path: Path) -> None:
    assert venv_packages.digest_of(environment.venv) == ""
    (tmp_path / "other").mkdir()
    other = Environment(tmp_path / "other")
    for each in (environment, other):
        each.install(*WHOLE)
        each.fill("foo_bar-1.0", FILES)
    (other.site / "foo_bar-1.0.dist-info/INSTALLER").write_text("pip")
    with (other.site / "foo_bar-1.0.dist-info/RECORD").open("a") as record:
        record.write(
            "foo_bar-1.0.dist-info/INSTALLER,sha256=x,3\nfoo_bar-1.0.dist-info/direct_url.json,sha256=y,3\npkg/c.pyc,sha256=z,3\n"
        )
    same = venv_packages.digest_of(environment.venv)
    assert venv_packages.digest_of(other.venv) == same != ""
    other.fill("foo_bar-1.0", FILES | {"pkg/b.py": "b = 3\n"})
    assert venv_packages.digest_of(other.venv) != same


def test_an_environment_of_another_digest_than_its_record_is_installed_anew(environment: Environment) -> None:
    environment.install(*WHOLE)
    before = environment.fill("foo_bar-1.0", FILES)
    environment.remember(environment.run()["digest"])
    assert environment.run()["changed"] is False
    environment.fill("foo_bar-1.0", FILES | {"pkg/a.py": "evil\n"})
    assert environment.run(check=True)["changed"] is True
    environment.tell(install=WHOLE, files=before)
    result = environment.run()
    assert (result["changed"], "--reinstall" in environment.called, environment.record.exists()) == (True, True, False)
    assert environment.run()["changed"] is False


def test_files_are_read_only_where_asked_and_those_that_differ_are_named(environment: Environment) -> None:
    environment.install(*WHOLE)
    whole = environment.fill("foo_bar-1.0", FILES)
    (environment.site / "pkg/a.py").write_text("evil\n")
    (environment.site / "pkg/b.py").unlink()
    assert (environment.run()["changed"], environment.run()["altered"]) == (False, [])
    found = environment.run(check=True, verify_files=True)
    assert found["altered"] == ["lib/python3.11/site-packages/pkg/a.py", "lib/python3.11/site-packages/pkg/b.py"]
    assert (found["changed"], found["diff"]["before"].splitlines()) == (True, found["altered"])
    environment.tell(install=WHOLE, files=whole)
    assert environment.run(verify_files=True)["changed"] is True
    assert environment.run(check=True, verify_files=True)["changed"] is False


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


def test_what_a_killed_uv_has_left_is_thrown_away(environment: Environment) -> None:
    environment.install(*WHOLE)
    (environment.site / "half/of").mkdir(parents=True)
    (environment.site / "_virtualenv.pth").touch()
    (environment.venv / "installing").touch()
    environment.record.unlink()
    assert environment.run(check=True)["changed"] is True
    assert (environment.site / "half").exists()
    environment.tell(rc=-9)
    assert environment.run()["failed"]
    assert [path.name for path in environment.site.iterdir()] == ["_virtualenv.pth"]
    environment.tell(install=WHOLE)
    assert environment.run()["changed"] is True
    assert not (environment.venv / "installing").exists()
    assert environment.run()["changed"] is False
