# SPDX-License-Identifier: Apache-2.0
"""package_ledger and package_purge: what came by the collection goes again, and nothing that was there before, is needed or was asked for since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _ledger
from ansible_collections.h20.fleet.plugins.module_utils._ledger import Host, Ledger, Package
from unit.plugins.support import run_module, write_program


def package(needs: str = "", *, automatic: bool = False, recommends: str = "", provides: str = "") -> Package:
    return Package(automatic, _ledger.groups(needs), _ledger.groups(recommends), tuple(provides.split()))


def host(*held: str, **packages: Package) -> Host:
    return Host({name.replace("_", "-"): entry for name, entry in packages.items()}, frozenset(held))


BASE = {"libc6": package(), "python3": package("libc6")}
#: What the stage of the model asks for, and what comes along.
ARIA2 = {"aria2": package("libc6, libaria2-0 (= 1.36)"), "libaria2_0": package("libc6", automatic=True)}


@pytest.mark.parametrize(
    ("relation", "names"),
    [
        ("", ()),
        ("libc6 (>= 2.34), libaria2-0 (= 1.36.0-1)", (("libc6",), ("libaria2-0",))),
        ("nginx-light | nginx-core (>> 1) | nginx:any", (("nginx-light", "nginx-core", "nginx"),)),
    ],
)
def test_names_of_a_relation(relation: str, names: tuple[tuple[str, ...], ...]) -> None:
    assert _ledger.groups(relation) == names


def test_packages_that_are_there_at_least_in_part() -> None:
    rows = [
        ("libc6", "amd64", "installed", "", "", "", "libc6-x"),
        ("libc6", "i386", "installed", "", "libgcc-s1", "", ""),
        ("gone", "all", "config-files", "", "", "", ""),
        ("torn", "all", "half-configured", "dpkg (>= 1)", "libc6", "more", "mail-transport-agent (= 1)"),
    ]
    found = _ledger.parse("".join("\t".join(row) + "\n" for row in rows) + "noise\n", {"torn"})
    assert found == {
        "libc6": package("libgcc-s1", provides="libc6-x"),
        "torn": package("dpkg, libc6", automatic=True, recommends="more", provides="mail-transport-agent"),
    }


def brought(then: Host, now: Host, *names: str, stage: str = "model") -> set[str]:
    """What goes with the stage that asked for these at first, as the host is now."""
    return Ledger().noted(then, stage, names, ()).going(now, [stage])


def test_what_was_asked_for_and_came_along_goes_and_nothing_else() -> None:
    assert brought(host(**BASE), host(**BASE, **ARIA2), "aria2") == {"aria2", "libaria2-0"}


def test_what_was_there_before_stays() -> None:
    then = host(**BASE, **ARIA2)
    assert brought(then, then, "aria2") == set()
    library = {"libaria2_0": ARIA2["libaria2_0"]}
    assert brought(host(**BASE, **library), host(**BASE, **ARIA2), "aria2") == {"aria2"}


def test_what_an_operator_has_installed_since_stays_with_what_it_needs() -> None:
    of_theirs = {"their_tool": package("libtheirs"), "libtheirs": package(automatic=True)}
    now = host(**BASE, **ARIA2, **of_theirs)
    assert brought(host(**BASE), now, "aria2") == {"aria2", "libaria2-0"}
    for needs, left in (("aria2", set()), ("libaria2-0", {"aria2"}), ("nothing | libaria2-0", {"aria2"})):
        now = host(**BASE, **ARIA2, their_tool=package(needs))
        assert brought(host(**BASE), now, "aria2") == left
    # What they have asked for by its name is theirs, though it came along with ours at first.
    now = host(**BASE, aria2=ARIA2["aria2"], libaria2_0=package("libc6"))
    assert brought(host(**BASE), now, "aria2") == {"aria2"}


def test_package_of_theirs_that_another_of_ours_is_enough_for() -> None:
    """One of two that provide the same may go; the last one stays."""
    server, other = package(provides="httpd"), package(provides="httpd")
    theirs = package("httpd")
    assert brought(host(**BASE), host(**BASE, nginx=server, theirs=theirs), "nginx") == set()
    assert brought(host(**BASE, other=other), host(**BASE, other=other, nginx=server, theirs=theirs), "nginx") == {
        "nginx"
    }


def test_recommendation_counts_but_for_what_did_without_before() -> None:
    eager = package("libc6", recommends="aria2")
    assert brought(host(**BASE, eager=eager), host(**BASE, **ARIA2, eager=eager), "aria2") == {"aria2", "libaria2-0"}
    assert brought(host(**BASE), host(**BASE, **ARIA2, eager=eager), "aria2") == set()
    # What ours recommend came along with them.
    ours = {"aria2": package(recommends="ca-bundle"), "ca_bundle": package(automatic=True)}
    assert brought(host(**BASE), host(**BASE, **ours), "aria2") == {"aria2", "ca-bundle"}


def test_every_call_knows_what_came_since_the_last() -> None:
    """An operator's package that is there when a stage asks for it is no stage's, first call or not."""
    ledger = Ledger().noted(host(**BASE), "model", ["aria2"], ())
    theirs = {"gcc": package("libgcc"), "libgcc": package(automatic=True)}
    ledger = ledger.noted(host(**BASE, **ARIA2, **theirs), "vllm", ["gcc", "libnuma1"], ())
    now = host(**BASE, **ARIA2, **theirs, libnuma1=package("libgcc"))
    assert ledger.asked == {"aria2": ("model",), "libnuma1": ("vllm",)}
    assert ledger.going(now, ["model", "vllm"]) == {"aria2", "libaria2-0", "libnuma1"}
    assert ledger.going(now, ["vllm"]) == {"libnuma1"}


def test_what_came_along_and_is_named_by_an_upgrade_stays_ours() -> None:
    """apt counts what is named with its version as asked for by its name."""
    now = host(**BASE, **ARIA2)
    ledger = Ledger().noted(host(**BASE), "model", ["aria2"], ()).noted(now, "model", ["aria2", "libaria2-0"], ())
    upgraded = host(**BASE, **ARIA2 | {"libaria2_0": package("libc6")})
    assert ledger.going(upgraded, ["model"]) == {"aria2", "libaria2-0"}
    assert ledger.noted(upgraded, "model", ["aria2", "libaria2-0"], ()).going(upgraded, ["model"]) == {
        "aria2",
        "libaria2-0",
    }


def test_package_that_was_taken_away_and_brought_again_by_somebody_is_theirs() -> None:
    ledger = Ledger().noted(host(**BASE), "model", ["aria2"], ())
    ledger = ledger.noted(host(**BASE), "vllm", ["libnuma1"], ())
    assert ledger.asked == {"libnuma1": ("vllm",)}
    assert ledger.going(host(**BASE, **ARIA2), ["model", "vllm"]) == set()


def test_what_another_stage_needs_stays_until_that_goes() -> None:
    ledger = Ledger().noted(host(**BASE), "model", ["nginx"], ())
    now = host(**BASE, nginx=package("libc6"))
    ledger = ledger.noted(now, "mirror", ["nginx"], ())
    assert ledger.going(now, ["model"]) == set()
    rest = ledger.without(["model"])
    assert rest.asked == {"nginx": ("mirror",)}
    assert rest.going(now, ["mirror"]) == {"nginx"}


def test_only_holds_that_were_set_are_known() -> None:
    ledger = Ledger().noted(host("linux-image", **BASE), "nvidia_driver", (), ["linux-image", "nvidia-open"])
    assert ledger.holds == {"nvidia-open": ("nvidia_driver",)}
    assert ledger.without(["nvidia_driver"]) == Ledger(frozenset(BASE))


PROGRAMS = {
    "dpkg-query": "sys.stdout.write((HERE / 'packages').read_text())",
    "apt-mark": """\
state = json.loads((HERE / 'state').read_text())
if ARGUMENTS[0] in ('showauto', 'showhold'):
    print('\\n'.join(state[ARGUMENTS[0]]))
else:
    with (HERE / 'calls').open('a') as calls: print('apt-mark', *ARGUMENTS, file=calls)""",
    "apt-get": """\
state = json.loads((HERE / 'state').read_text())
if '--simulate' in ARGUMENTS:
    names = [one for one in ARGUMENTS[1:] if not one.startswith('--')]
    print('\\n'.join('Purg %s [1]' % one for one in names + state['others']))
    sys.exit(state['rc'] and print('E: held broken packages', file=sys.stderr) or state['rc'])
with (HERE / 'calls').open('a') as calls: print('apt-get', *(one for one in ARGUMENTS if not one.startswith('--option')), file=calls)""",
    "systemctl": "with (HERE / 'calls').open('a') as calls: print('systemctl', *ARGUMENTS, file=calls)",
}
ROWS = {
    "libc6": ("", ""),
    "aria2": ("libc6, libaria2-0", ""),
    "libaria2-0": ("libc6", ""),
    "fabricmanager": ("libc6", ""),
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that stand for dpkg, apt and systemd, and a ledger of two stages."""
    for name, body in PROGRAMS.items():
        write_program(tmp_path / "bin" / name, body)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    state(tmp_path)
    show(tmp_path, "libc6")
    run_module("package_ledger", stage="model", packages=["aria2"], path=ledger(tmp_path))
    show(tmp_path, "libc6", "aria2", "libaria2-0")
    state(tmp_path, showauto=["libaria2-0"])
    driver: dict[str, Any] = {"packages": ["fabricmanager=1-1", "old-"], "holds": ["fabricmanager"]}
    run_module("package_ledger", stage="nvidia_driver", path=ledger(tmp_path), **driver)
    show(tmp_path, *ROWS)
    state(tmp_path, showhold=["fabricmanager"], showauto=["libaria2-0"])
    (tmp_path / "info").mkdir()
    (tmp_path / "info/fabricmanager.list").write_text(
        "/.\n/lib/systemd/system/fabric.service\n/usr/lib/systemd/system/x@.service\n"
    )
    (tmp_path / "info/libc6:amd64.list").write_text("/lib/systemd/system/other.service\n")
    (tmp_path / "archives").mkdir()
    for name in ("aria2_1.36_amd64.deb", "libc6_2_amd64.deb"):
        (tmp_path / "archives" / name).touch()
    return tmp_path


def ledger(machine: Path) -> str:
    return str(machine / "state/packages.json")


def state(machine: Path, **changes: Any) -> None:
    content = {"showauto": [], "showhold": [], "others": [], "rc": 0} | changes
    (machine / "bin/state").write_text(json.dumps(content))


def show(machine: Path, *names: str) -> None:
    rows = [(name, "amd64", "installed", "", *ROWS[name], "") for name in names]
    (machine / "bin/packages").write_text("".join("\t".join(row) + "\n" for row in rows))


def purge(machine: Path, *stages: str, check: bool = False, **params: Any) -> dict[str, Any]:
    folders = {"info": str(machine / "info"), "archives": str(machine / "archives"), "path": ledger(machine)}
    return run_module("package_purge", check=check, stages=list(stages), **folders, **params)


def calls(machine: Path) -> list[str]:
    path = machine / "bin/calls"
    return path.read_text().splitlines() if path.exists() else []


def test_ledger_is_written_once(machine: Path) -> None:
    before = Path(ledger(machine)).read_text()
    again = run_module("package_ledger", stage="model", packages=["aria2"], path=ledger(machine))
    assert (again["changed"], again["asked"]) == (False, {"aria2": ["model"], "fabricmanager": ["nvidia_driver"]})
    assert run_module("package_ledger", check=True, stage="vllm", packages=["g++"], path=ledger(machine))["changed"]
    assert Path(ledger(machine)).read_text() == before


def test_purge_takes_the_stage_alone_and_says_so_before(machine: Path) -> None:
    planned = purge(machine, "model", check=True)
    assert calls(machine) == []
    done = purge(machine, "model")
    assert planned == done
    assert (done["changed"], done["purged"], done["unheld"]) == (True, ["aria2", "libaria2-0"], [])
    assert calls(machine) == ["apt-get purge --yes aria2 libaria2-0"]
    assert [path.name for path in (machine / "archives").iterdir()] == ["libc6_2_amd64.deb"]
    show(machine, "libc6", "fabricmanager")
    assert not purge(machine, "model")["changed"]
    assert json.loads(Path(ledger(machine)).read_text())["asked"] == {"fabricmanager": ["nvidia_driver"]}


def test_purge_releases_holds_and_stops_services_first(machine: Path) -> None:
    assert purge(machine, "model", "nvidia_driver")["unheld"] == ["fabricmanager"]
    assert calls(machine) == [
        "apt-mark unhold fabricmanager",
        "systemctl disable --now fabric.service",
        "apt-get purge --yes aria2 fabricmanager libaria2-0",
    ]
    assert not Path(ledger(machine)).exists()
    assert not purge(machine, "model", "nvidia_driver")["changed"]


def test_packages_may_stay_without_their_holds(machine: Path) -> None:
    result = purge(machine, "model", "nvidia_driver", holds_only=True)
    assert (result["purged"], result["unheld"]) == ([], ["fabricmanager"])
    assert calls(machine) == ["apt-mark unhold fabricmanager"]
    state(machine, showauto=["libaria2-0"])
    assert not purge(machine, "nvidia_driver", holds_only=True)["changed"]
    assert purge(machine, "nvidia_driver")["purged"] == ["fabricmanager"]


def test_what_somebody_else_needs_stays_as_what_came_along_with_theirs(machine: Path) -> None:
    with (machine / "bin/packages").open("a") as packages:
        packages.write("their-tool\tamd64\tinstalled\t\taria2\t\t\n")
    result = purge(machine, "model")
    assert (result["purged"], result["kept"], result["changed"]) == ([], ["aria2"], True)
    assert calls(machine) == ["apt-mark auto aria2"]
    assert not purge(machine, "model")["changed"]


def test_purge_refuses_what_apt_would_take_along(machine: Path) -> None:
    state(machine, showauto=["libaria2-0"], others=["their-tool:amd64"])
    result = purge(machine, "model")
    assert "take along what the collection did not bring: their-tool ->" in result["msg"]
    state(machine, showauto=["libaria2-0"], rc=100)
    assert "apt cannot take the packages away: held broken packages ->" in purge(machine, "model")["msg"]
    assert calls(machine) == []


def test_torn_ledger_is_named(machine: Path) -> None:
    Path(ledger(machine)).write_text("{")
    assert f"{ledger(machine)} is no ledger" in purge(machine, "model")["msg"]
    assert "->" in run_module("package_ledger", stage="model", path=ledger(machine))["msg"]
