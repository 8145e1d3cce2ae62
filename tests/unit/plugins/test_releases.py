# SPDX-License-Identifier: Apache-2.0
"""The life of releases on a host: release_switch, release_sweep, release_info and the filter that chooses the way back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter import rollback_plan as way_back
from ansible_collections.h20.fleet.plugins.module_utils import _releases
from unit.plugins.support import DRIVER, run_module

plan = way_back.FilterModule().filters()["rollback_plan"]

BEGIN = 1_700_000_000.0

#: Has a file in its memory that it is told of, and nowhere else.
MAPS = """
import mmap
name = input()
with open(name, "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print(name, flush=True)
input()
"""


class Host:
    """A folder of releases; every one is a minute younger than the one that was made before it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages = root / "driver-packages"
        self.clock = BEGIN
        (root / "releases").mkdir(parents=True)

    def build(self, name: str, *, driver: str = "580.173.02", uv: str = "0.13.9") -> Path:
        path = self.tear(name)
        definition = {"driver": {"version": driver}, "dcgm": {"version": "4.5.2"}, "uv": {"version": uv}}
        self.write(path / "release.json", json.dumps({"release": name, "environment": {"digest": ""}} | definition))
        return path

    def tear(self, name: str) -> Path:
        """A release that a cut has left."""
        path = self.root / "releases" / name
        (path / "bin").mkdir(parents=True)
        (path / "bin/vllm").touch()
        return path

    def write(self, path: Path, text: str = "") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.clock += 60
        os.utime(path, (self.clock, self.clock))
        return path

    def link(self, link: str, release: str) -> None:
        (self.root / link).unlink(missing_ok=True)
        (self.root / link).symlink_to(f"releases/{release}")
        self.clock += 60
        os.utime(self.root / link, (self.clock, self.clock), follow_symlinks=False)

    def serves(self, name: str) -> None:
        """Switched to, and seen to answer."""
        self.link("current", name)
        self.write(self.root / "releases" / name / "served")

    @property
    def links(self) -> dict[str, str]:
        names = ("current", "previous", "rollback")
        return {name: os.readlink(self.root / name) for name in names if (self.root / name).is_symlink()}  # noqa: PTH115 (as it is written)

    @property
    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.root / "releases").iterdir())

    def switch(self, release: str, *, check: bool = False, keep: int = 2) -> dict[str, Any]:
        where = {"root": str(self.root), "driver_packages": str(self.packages)}
        return run_module("release_switch", check=check, release=release, keep=keep, **where)

    def sweep(self, release: str, *, check: bool = False, keep: int = 2) -> dict[str, Any]:
        where = {"root": str(self.root), "driver_packages": str(self.packages)}
        return run_module("release_sweep", check=check, release=release, keep=keep, **where)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "vllm")


def test_the_first_release_becomes_current_and_there_is_none_before_it(host: Host) -> None:
    host.build("a")
    planned = host.switch("a", check=True)
    assert (planned["changed"], host.links) == (True, {})
    done = host.switch("a")
    assert (done["changed"], done["previous"], done["settled"]) == (True, "", False)
    assert done["diff"] == {"before": "", "after": "current -> releases/a\n"}
    assert host.links == {"current": "releases/a"}


def test_a_switch_there_and_back(host: Host) -> None:
    for name in ("a", "b"):
        host.build(name)
    host.serves("a")
    assert host.switch("b")["previous"] == "a"
    assert host.links == {"current": "releases/b", "previous": "releases/a"}
    host.sweep("b")
    again = host.switch("b")
    assert (again["changed"], again["previous"], again["settled"]) == (False, "a", True)
    assert host.switch("a")["previous"] == "b"
    assert host.links == {"current": "releases/a", "previous": "releases/b"}


def test_a_release_that_never_served_is_no_way_back(host: Host) -> None:
    for name in ("a", "bad", "c"):
        host.build(name)
    host.serves("a")
    host.switch("bad")
    assert host.switch("c")["previous"] == "a"
    assert host.links == {"current": "releases/c", "previous": "releases/a"}


def test_what_is_current_becomes_the_previous_one_where_there_is_no_better(host: Host) -> None:
    for name in ("a", "b"):
        host.build(name)
    host.link("current", "a")
    host.link("previous", "gone")
    assert host.switch("b")["previous"] == "a"


@pytest.mark.parametrize("current", ["gone", "torn"])
def test_a_link_to_nothing_whole_is_never_the_previous_one(host: Host, current: str) -> None:
    host.tear("torn")
    for name in ("a", "b"):
        host.build(name)
    host.link("current", current)
    host.link("previous", "a")
    assert host.switch("b")["previous"] == "a"
    assert host.links == {"current": "releases/b", "previous": "releases/a"}


@pytest.mark.parametrize("name", ["torn", "absent"])
@pytest.mark.parametrize("check", [False, True])
def test_a_release_that_is_not_complete_is_refused_by_name(host: Host, name: str, *, check: bool) -> None:
    host.tear("torn")
    host.build("a")
    host.serves("a")
    result = host.switch(name, check=check)
    assert result["msg"] == (
        f"release {name} is not complete: {host.root}/releases/{name}/release.json is not there"
        " -> run the stages that build it: --tags python_venv,vllm"
    )
    assert host.links == {"current": "releases/a"}


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", ""])
def test_a_name_that_leads_elsewhere_is_refused(host: Host, name: str) -> None:
    assert "cannot name a release" in host.switch(name)["msg"]


def test_a_record_that_is_cut_off_is_no_record(host: Host) -> None:
    (host.tear("a") / "release.json").write_text('{"release": ')
    assert "release a is not complete" in host.switch("a")["msg"]


def test_a_cut_between_the_renames_leaves_what_serves(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("z", "a", "b"):
        host.build(name)
    host.serves("z")
    host.serves("a")
    host.link("previous", "z")
    with monkeypatch.context() as cut:
        original = _releases.point

        def point(root: Path, link: str, release: str) -> None:
            if link == "current":
                (root / f".{link}.new").symlink_to("releases/half")
                raise OSError(28, "No space left on device")
            original(root, link, release)

        cut.setattr(_releases, "point", point)
        result = host.switch("b")
    assert "current is still a" in result["msg"]
    assert "No space left on device" in result["msg"]
    assert host.links == {"current": "releases/a", "previous": "releases/a"}
    assert host.switch("b")["previous"] == "a"
    assert host.links == {"current": "releases/b", "previous": "releases/a"}
    assert [path for path in host.root.iterdir() if path.name.startswith(".")] == []


def test_a_folder_in_the_place_of_the_link_is_refused(host: Host) -> None:
    host.build("a")
    (host.root / "current").mkdir()
    assert "has to be a link or absent" in host.switch("a")["msg"]


def test_the_first_sweep_notes_that_the_release_serves(host: Host) -> None:
    host.build("a")
    host.switch("a")
    assert host.sweep("a", check=True)["changed"]
    assert not (host.root / "releases/a/served").exists()
    done = host.sweep("a")
    assert (done["changed"], done["swept"], done["diff"]) == (True, [], {"before": "", "after": "a has answered\n"})
    assert (host.sweep("a")["changed"], host.switch("a")["settled"]) == (False, True)


def test_old_releases_beyond_the_number_and_torn_ones_go(host: Host) -> None:
    for name in ("a", "b", "c", "d", "e", "new"):
        host.build(name)
    host.tear("torn")
    for name in ("c", "b", "e", "d"):  # a has never served and was completed first
        host.serves(name)
    host.link("previous", "e")
    assert not host.switch("d", keep=1)["settled"]
    expected = [str(host.root / "releases" / name) for name in ("a", "c", "new", "torn")]
    shown = host.sweep("d", keep=1, check=True)
    assert (shown["swept"], shown["diff"]["before"]) == (expected, "".join(f"{path}\n" for path in expected))
    assert len(host.releases) == 7
    assert host.sweep("d", keep=1)["swept"] == expected
    assert host.releases == ["b", "d", "e"]
    assert host.switch("d", keep=1)["settled"]


def test_none_is_kept_where_none_shall_be_but_current_and_previous(host: Host) -> None:
    for name in ("a", "b", "c"):
        host.build(name)
        host.serves(name)
    host.link("previous", "a")
    host.sweep("c", keep=0)
    assert host.releases == ["a", "c"]
    assert "keep is -1" in host.sweep("c", keep=-1)["msg"]
    assert "keep is -1" in host.switch("a", keep=-1)["msg"]


def test_what_a_switch_would_leave_behind_is_foreseen_in_check_mode(host: Host) -> None:
    for name in ("old", "a", "b"):
        host.build(name)
    host.serves("old")
    host.serves("a")
    host.link("previous", "old")
    assert host.sweep("b", keep=0, check=True)["swept"] == [str(host.root / "releases/old")]


@pytest.mark.parametrize("uses", ["folder", "argument", "program", "memory"])
def test_what_a_process_uses_is_left(host: Host, uses: str) -> None:
    host.build("a")
    host.serves("a")
    torn = host.tear("torn")
    (torn / "library").write_bytes(b"x" * 4096)
    command, folder, said = [sys.executable, "-c", "print(input(), flush=True); input()"], Path("/"), "ready"
    if uses == "folder":
        folder = torn
    elif uses == "argument":
        command.append(f"--python={torn}/bin/python")
    elif uses == "program":
        shutil.copy("/bin/cat", torn / "bin/program")
        command = [str(torn / "bin/program")]
    else:
        command[-1], said = MAPS, str(torn / "library")
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{said}\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{said}\n"
        assert host.sweep("a")["swept"] == []
        assert host.switch("a")["settled"], "a run that can do nothing about it changes nothing"
    finally:
        process.communicate("\n", timeout=10)
    assert not host.switch("a")["settled"]
    assert host.sweep("a")["swept"] == [str(torn)]


def test_tools_interpreters_and_driver_packages_that_nobody_names_go(host: Host) -> None:
    host.build("old", driver="570.86.15", uv="0.12.0")
    first, second = host.build("a", uv="0.13.0"), host.build("b", driver="595.71.05")
    host.serves("old")
    host.serves("a")
    host.serves("b")
    host.link("previous", "a")
    for version in ("0.12.0", "0.13.0", "0.13.9"):
        host.write(host.root / f"tools/uv-{version}/bin/uv")
    host.write(host.root / "tools/collectives.py")
    for name in ("cpython-3.11.9", "cpython-3.12.4", "cpython-3.12.5"):
        host.write(host.root / f"pythons/{name}/bin/python")
    (host.root / "pythons/cpython-3.12").symlink_to("cpython-3.12.5")
    (host.root / "pythons/cpython-3.11").symlink_to("cpython-3.11.9")
    host.write(host.root / "pythons/.lock")
    (first / "bin/python").symlink_to("/usr/bin/python3")
    (second / "bin/python").symlink_to(host.root / "pythons/cpython-3.12/bin/python")
    kept = [
        "nvidia-open_580.173.02-1_amd64.deb",
        "nvidia-driver-pinning-595.71.05_595.71.05-1_all.deb",
        "datacenter-gpu-manager-4-core_1%3a4.5.2-1_amd64.deb",
    ]
    gone = [
        "g++-12_12.2.0-14+deb12u1_amd64.deb",
        "nvidia-open_570.86.15-1_amd64.deb",
        "odd.deb",
    ]
    for name in (*kept, *gone, "lock"):
        host.write(host.packages / name)
    assert host.sweep("b", keep=0)["swept"] == [
        str(host.root / "releases/old"),
        str(host.root / "tools/uv-0.12.0"),
        *(str(host.root / "pythons" / name) for name in ("cpython-3.11", "cpython-3.11.9", "cpython-3.12.4")),
        *(str(host.packages / name) for name in gone),
    ]
    assert sorted(path.name for path in host.packages.iterdir()) == sorted([*kept, "lock"])
    assert sorted(path.name for path in (host.root / "pythons").iterdir()) == [
        ".lock",
        "cpython-3.12",
        "cpython-3.12.5",
    ]
    assert host.switch("b", keep=0)["settled"]


def test_a_deletion_that_is_cut_off_leaves_no_complete_release(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old", "a"):
        host.build(name)
        host.serves(name)

    def cut(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut)
        result = host.sweep("a", keep=0)
    assert "cannot be deleted or written: Input/output error" in result["msg"]
    assert _releases.read(host.root)["old"].definition is None
    assert host.sweep("a", keep=0)["swept"] == [str(host.root / "releases/old")]


def test_a_way_back_ends_when_the_release_has_answered(host: Host) -> None:
    for name in ("a", "b"):
        host.build(name)
        host.serves(name)
    host.link("rollback", "a")
    host.switch("a")
    assert host.links == {"current": "releases/a", "previous": "releases/b", "rollback": "releases/a"}
    assert host.sweep("a")["diff"]["before"] == "on the way back to a\n"
    assert host.links == {"current": "releases/a", "previous": "releases/b"}


@pytest.mark.parametrize("check", [False, True])
def test_a_host_is_read(host: Host, *, check: bool) -> None:
    host.build("a")
    host.build("b")
    host.tear("torn")
    host.serves("a")
    host.link("previous", "gone")
    where = {"mark": str(host.root / "mark"), "module_version": str(host.root / "version")}
    result = run_module("release_info", check=check, root=str(host.root), **where)
    assert (result["driver"], result["out_of_service"]) == ("", False)
    host.write(host.root / "mark")
    host.write(host.root / "version", f"{DRIVER}\n")
    result = run_module("release_info", check=check, root=str(host.root), **where)
    assert (result["driver"], result["out_of_service"]) == (DRIVER, True)
    assert [result[key] for key in ("current", "previous", "rollback", "changed")] == ["a", "gone", "", False]
    states = {name: (item["complete"], item["served"]) for name, item in result["releases"].items()}
    assert states == {"a": (True, True), "b": (True, False), "torn": (False, False)}
    assert result["releases"]["a"]["definition"]["driver"] == {"version": "580.173.02"}
    assert sorted(result["releases"]["a"]["definition"]) == ["dcgm", "driver", "uv"]
    assert result["releases"]["torn"]["definition"] is None
    bare = run_module("release_info", check=check, root=str(host.root / "nothing"))
    assert (bare["current"], bare["releases"]) == ("", {})


def there(current: str, previous: str = "", rollback: str = "", torn: tuple[str, ...] = ()) -> dict[str, Any]:
    """What release_info says of a host with the releases a, b and z."""
    definition = {"driver": {"version": DRIVER}}
    releases = {
        name: {"complete": name not in torn, "served": True, "definition": None if name in torn else definition}
        for name in ("a", "b", "z")
    }
    links = {"current": current, "previous": previous, "rollback": rollback}
    return links | {"releases": releases, "driver": DRIVER, "out_of_service": False}


def releases_of(hosts: dict[str, dict[str, Any]], wanted: str = "") -> dict[str, str]:
    """Where each host goes; it is refused nowhere."""
    planned = plan(hosts, wanted)
    assert [entry["refusals"] for entry in planned.values()] == [[]] * len(hosts)
    return {host: entry["release"] for host, entry in planned.items()}


def test_every_host_goes_to_its_previous_release() -> None:
    assert releases_of({"h1": there("b", "a"), "h2": there("b", "a")}) == {"h1": "a", "h2": "a"}


def test_a_release_by_name_stands_before_all() -> None:
    hosts = {"h1": there("b", "a"), "h2": there("a", "z"), "h3": there("b", "z", rollback="z")}
    assert set(releases_of(hosts, "a").values()) == {"a"}


def test_a_way_back_that_was_cut_off_is_finished_and_nobody_goes_forward_again() -> None:
    hosts = {
        "through": there("a", "b"),
        "switched": there("a", "b", rollback="a"),
        "not begun": there("b", "a", rollback="a"),
    }
    assert set(releases_of(hosts).values()) == {"a"}


def test_the_next_one_goes_forward_again() -> None:
    assert set(releases_of({"h1": there("a", "b"), "h2": there("a", "b")}).values()) == {"b"}


@pytest.mark.parametrize("change", [{"driver": "595.71.05"}, {"out_of_service": True, "driver": ""}])
def test_a_change_that_got_no_further_than_the_driver_is_taken_back_and_no_more(change: dict[str, Any]) -> None:
    assert releases_of({"h1": there("a", "z") | change, "h2": there("b", "a")}) == {"h1": "a", "h2": "a"}
    assert releases_of({"h1": there("a", "z") | change | {"rollback": "z"}}) == {"h1": "z"}
    assert releases_of({"h1": there("a", "z") | change}, "z") == {"h1": "z"}


def test_an_upgrade_that_stopped_half_way_is_not_guessed_at() -> None:
    planned = plan({"h1": there("b", "a"), "h2": there("a", "z"), "h3": there("b", "a", torn=("a",))})
    assert planned["h1"]["refusals"] == [
        "its way back leads to a, that of others to z -> name one for all by -e fleet_rollback_to=<release>, or some of the hosts by --limit"
    ]
    assert planned["h2"]["refusals"][0].startswith("its way back leads to z, that of others to a ->")
    assert "is not complete" in planned["h3"]["refusals"][0]


NAME_ONE = "-> name one of them by -e fleet_rollback_to=<release>"
BARE: dict[str, Any] = there("") | {"releases": {}, "driver": ""}


@pytest.mark.parametrize(
    ("host", "wanted", "refusal"),
    [
        (there("b"), "", f"there is no previous release; beside b it has a, z {NAME_ONE}"),
        (there("b", "b"), "", f"there is no previous release; beside b it has a, z {NAME_ONE}"),
        (there("b", "gone"), "", f"release gone is not there; beside b it has a, z {NAME_ONE}"),
        (
            there("b", "a", torn=("a",)),
            "",
            f"the release to go back to, a, is not complete, its release.json is not there; beside b it has z {NAME_ONE}",
        ),
        (
            there("b", "z", torn=("a",)),
            "a",
            f"release a is not complete, its release.json is not there; beside b it has z {NAME_ONE}",
        ),
    ],
)
def test_a_host_that_cannot_go_back_is_refused(host: dict[str, Any], wanted: str, refusal: str) -> None:
    assert plan({"h1": host}, wanted)["h1"]["refusals"] == [refusal]


def test_a_bare_host_is_refused() -> None:
    nothing = "there is no previous release; beside none that serves it has no complete release"
    remedy = "-> leave it out by --limit, or build one by the playbook site"
    assert plan({"h1": BARE})["h1"]["refusals"] == [f"{nothing} {remedy}"]
