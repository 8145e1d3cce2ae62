# SPDX-License-Identifier: Apache-2.0
"""The life of a release on hosts that serve: built beside, cut off, switched to, taken back without a network, swept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import typing as t
from pathlib import Path

import docker
import pytest
import yaml
from conftest import ROOT, STATE, UNIT, Api, Run, follows_release, on_console, play, shell, start

FIRST, SECOND = "h20-11", "h20-12"
HOSTS = (FIRST, SECOND)
OLD_DRIVER, NEW_DRIVER = "580.173.02", "595.71.05"
#: What each host goes to: both have other packages than `demo`, the second another driver as well.
NEXT = {FIRST: "demo-b", SECOND: "demo-c"}
RELEASES = "/opt/vllm/releases"
TORN = f"{RELEASES}/{NEXT[FIRST]}"
PACKAGES = "/var/lib/h20-fleet/driver-packages"
LOCK = STATE / "demo-b.txt"
#: Nobody answers there, and nobody ever will (RFC 5737).
NOWHERE = "http://192.0.2.1"
OFFLINE = {
    "fleet_nvidia_mirror": NOWHERE,
    "fleet_hub_endpoint": NOWHERE,
    "fleet_mirror": NOWHERE,
    "fleet_python_mirror": NOWHERE,
    "fleet_pip_index_url": NOWHERE,
    "fleet_pip_extra_index_urls": [],
    "fleet_pip_find_links": [],
}
#: Names the uv that installs; it does not find itself.
INSTALLS = f"pgrep --full '[u]v pip sync .*{TORN}'"
#: Names the packages that are there, while it does.
HALF_WAY = f"{INSTALLS} >/dev/null && ls -d {TORN}/lib/*/*/*.dist-info"
WAIT_SECONDS = 180
PAUSE = 0.5

#: Files that are not as long as their distribution says, compiled ones aside.
SHORT_FILES = """
import csv, pathlib, sys
for record in pathlib.Path(sys.argv[1]).glob("lib/python*/site-packages/*.dist-info/RECORD"):
    for name, _, size in csv.reader(record.open(newline="")):
        path = record.parent.parent / name
        if size and not name.endswith(".pyc") and (not path.exists() or path.stat().st_size != int(size)):
            print(path)
"""


def another_lock() -> str:
    """Resolve the demo's lock once more with an older shellingham, which its packages take as well, and return the lock's sha256."""
    pip = json.loads((STATE / "environment.json").read_text(encoding="utf-8"))["pip"]
    wheels = [str(ROOT / ".testbed/services/mirror/wheels"), *pip["find_links"]]
    environment = os.environ | {"UV_FIND_LINKS": ",".join(wheels), "UV_INDEX_STRATEGY": "unsafe-best-match"}
    environment |= {"UV_DEFAULT_INDEX": pip["index_url"]} if pip["index_url"] else {}
    environment |= {"UV_INDEX": " ".join(pip["extra_index_urls"])} if pip["extra_index_urls"] else {}
    name = "vllm-0.32.0-cpu-py311"
    LOCK.write_text((ROOT / f"roles/vllm/files/locks/{name}.txt").read_text(encoding="utf-8"), encoding="utf-8")
    constraints = LOCK.with_suffix(".constraints")
    constraints.write_text("shellingham<1.5.4\n", encoding="utf-8")
    inputs = [f"requirements/locks/{name}.in", "--override", f"requirements/locks/{name}.overrides.txt"]
    options = [
        "--constraint",
        str(constraints),
        "--python-version",
        "3.11",
        "--python-platform",
        "x86_64-manylinux_2_35",
    ]
    output = ["--only-binary", ":all:", "--generate-hashes", "--no-annotate", "--no-emit-index-url", "--quiet"]
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "compile", *inputs, *options, *output, "--output-file", str(LOCK)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    assert "\nshellingham==1.5.3 " in LOCK.read_text(encoding="utf-8")
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def inventory(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Path]:
    """Variables by host that name the next release; what the tests leave on the hosts is taken away at the end."""
    path = ROOT / "inventories/local/group_vars/all/release.yml"
    demo = yaml.safe_load(path.read_text(encoding="utf-8"))["fleet_releases"]["demo"]
    locks = {"3.11": {"file": str(LOCK), "sha256": another_lock()}}
    packages = demo | {"description": "The demo with other packages", "vllm": demo["vllm"] | {"locks": locks}}
    driver = packages | {"driver": {"version": NEW_DRIVER}}
    releases = {"demo": demo, NEXT[FIRST]: packages, NEXT[SECOND]: driver}
    variables = {host: {"fleet_release": name, "fleet_releases": releases} for host, name in NEXT.items()}
    file = tmp_path_factory.mktemp("inventory") / "next.yml"
    file.write_text(yaml.safe_dump({"all": {"hosts": variables}}), encoding="utf-8")
    yield file
    for host in HOSTS:
        shell(host, f"umount {TORN} 2>/dev/null || true")
        assert shell(host, "readlink /opt/vllm/current") == "releases/demo"
        shell(host, f"find {RELEASES} -mindepth 1 -maxdepth 1 ! -name demo -exec rm -r {{}} +")
        shell(host, "rm -f /opt/vllm/previous /opt/vllm/rollback")


def served(host: str) -> str:
    """Process and release that serve, as far as nothing may touch them."""
    return shell(host, f"systemctl show --property=MainPID,InvocationID {UNIT}; readlink /opt/vllm/current")


def until(what: str, holds: t.Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {WAIT_SECONDS} s"
        time.sleep(PAUSE / 2)


@dataclasses.dataclass
class Asked:
    """Chat completions that a host was asked for, one after the other."""

    answers: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def asking(host: str) -> t.Iterator[Asked]:
    """Ask the host for completions until the block ends."""
    asked, over = Asked(), threading.Event()

    def work() -> None:
        while not over.is_set():
            try:
                Api(host).chat()
                asked.answers += 1
            except (OSError, AssertionError) as error:
                asked.failures.append(f"{time.strftime('%X')} {error}")
            over.wait(2 * PAUSE)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def build(inventory: Path, *arguments: str) -> tuple[str, ...]:
    """Arguments of the run that builds the next release and leaves the service alone."""
    return ("site", "-i", str(inventory), "--tags", "python_venv,vllm", *arguments)


def cut_off(inventory: Path, cut: t.Callable[[], None]) -> Run:
    """Build on the first host, and cut it off while uv is in the middle of it."""
    with start(*build(inventory, "--limit", FIRST)) as process:
        until("uv installs", lambda: len(on_console(FIRST, "sh", "-c", HALF_WAY).split()) > 30)
        cut()
        try:
            output, _none = process.communicate(timeout=60)
        except (
            subprocess.TimeoutExpired
        ):  # nobody tells a client that its host is gone; an operator would not wait either
            os.killpg(process.pid, signal.SIGKILL)
            output, _none = process.communicate()
    return Run(process.returncode, output)


def kill_uv(inventory: Path) -> Run:
    return cut_off(inventory, lambda: void(shell(FIRST, f"kill -KILL $({INSTALLS})")))


def fill_disk(inventory: Path) -> Run:
    shell(FIRST, f"mkdir -p {TORN} && mount -t tmpfs -o size=200m tmpfs {TORN}")
    try:
        return play(*build(inventory, "--limit", FIRST))
    finally:
        shell(FIRST, f"umount {TORN}")


def cut_power(inventory: Path) -> Run:
    def cut() -> None:
        container = docker.from_env().containers.get(FIRST)
        container.kill()
        container.start()

    return cut_off(inventory, cut)


def void(_result: object) -> None:
    """Drop a result."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a build is cut off, what the run says then, and whether the host goes on meanwhile."""

    happens: t.Callable[[Path], Run]
    says: tuple[str, ...] = ()
    goes_on: bool = True


CUTS = {
    "full disk": Cut(fill_disk, ("No space left on device", TORN)),
    "uv is killed": Cut(kill_uv, ("uv could not install", TORN)),
    "power off": Cut(cut_power, goes_on=False),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_build_that_is_cut_off_is_named_and_what_serves_goes_on(cut: Cut, inventory: Path) -> None:
    before = served(FIRST)
    with asking(FIRST) as asked:
        run = cut.happens(inventory)
    assert [words for words in cut.says if words not in run.words] == [], run.output
    # ssh tries again, so that a host which is back soon enough is finished by the same run; complete is what a run says of it and no other.
    complete = shell(FIRST, f"ls {TORN}/release.json 2>/dev/null || true") != ""
    assert complete == (run.rc == 0), run.output
    if cut.goes_on:
        assert not complete
        assert asked.failures == []
        assert asked.answers > 0
        assert served(FIRST) == before
    else:
        until(
            "the host serves again by itself",
            lambda: on_console(FIRST, "systemctl", "is-active", UNIT).strip() == "active",
        )
        assert shell(FIRST, "readlink /opt/vllm/current") == "releases/demo"
        assert Api(FIRST).chat()


def test_same_command_completes_the_release_beside_the_one_that_serves(inventory: Path) -> None:
    before = [served(host) for host in HOSTS]
    with asking(FIRST) as asked:
        run = play(*build(inventory))
    assert run.rc == 0, run.output
    assert asked.failures == []
    assert asked.answers > 0
    assert [served(host) for host in HOSTS] == before
    for host, release in NEXT.items():
        assert json.loads(shell(host, f"cat {RELEASES}/{release}/release.json"))["release"] == release
        assert shell(host, f"/usr/bin/python3 -c '{SHORT_FILES}' {RELEASES}/{release}") == ""
        for name, version in (("demo", "1.5.4"), (release, "1.5.3")):
            assert shell(host, f"ls -d {RELEASES}/{name}/lib/*/*/shellingham-*").endswith(
                f"shellingham-{version}.dist-info"
            )


def test_host_without_a_previous_release_is_refused() -> None:
    before = [served(host) for host in HOSTS]
    run = play("rollback")
    assert run.rc == 2, run.output
    for host, release in NEXT.items():
        assert f"{host}: there is no previous release; beside demo it has {release}" in run.words
    assert [served(host) for host in HOSTS] == before


def test_switch_leaves_the_way_back_behind(inventory: Path) -> None:
    once = ("--extra-vars", "nvidia_driver_start_replicas=false")  # the switch starts them, once
    run = play("site", "-i", str(inventory), "--tags", "nvidia_driver,vllm_service", *once)
    assert run.rc == 0, run.output
    for host, release in NEXT.items():
        links = shell(host, "readlink /opt/vllm/current /opt/vllm/previous").split()
        assert links == [f"releases/{release}", "releases/demo"]
        assert f"{RELEASES}/{release}/" in shell(
            host, "tr '\\0' ' ' < /proc/$(systemctl show --value -p MainPID " + UNIT + ")/cmdline"
        )
        assert Api(host).chat()
    follows_release(FIRST, OLD_DRIVER)
    follows_release(SECOND, NEW_DRIVER)


@pytest.fixture
def obstacles() -> t.Iterator[None]:
    """The first host has lost the record of the release before, the second a package of its driver."""
    away = {
        FIRST: (f"{RELEASES}/demo/release.json", f"{RELEASES}/demo/away.json"),
        SECOND: (f"{PACKAGES}/libcuda1_{OLD_DRIVER}-1_amd64.deb", f"{PACKAGES}/away"),
    }
    for host, (path, elsewhere) in away.items():
        shell(host, f"mv {path} {elsewhere}")
    yield
    for host, (path, elsewhere) in away.items():
        shell(host, f"mv {elsewhere} {path}")


@pytest.mark.usefixtures("obstacles")
def test_what_stands_against_the_way_back_is_said_of_all_hosts_before_anything_changes() -> None:
    before = [served(host) for host in HOSTS]
    run = play("rollback")
    assert run.rc == 2, run.output
    assert f"{FIRST}: the release to go back to, demo, is not complete" in run.words
    assert f"{SECOND}: {PACKAGES} lacks 1 packages, among them libcuda1_{OLD_DRIVER}-1_amd64.deb" in run.words
    assert [served(host) for host in HOSTS] == before
    assert shell(SECOND, "ls /opt/vllm/rollback 2>/dev/null || true") == ""


@pytest.fixture
def offline(tmp_path: Path) -> t.Iterator[Path]:
    """Variables that lead nowhere, and hosts that have no way to the services outside the site."""
    file = tmp_path / "offline.yml"
    file.write_text(yaml.safe_dump({"all": {"hosts": dict.fromkeys(HOSTS, OFFLINE)}}), encoding="utf-8")
    for host in HOSTS:
        shell(
            host,
            "for name in mirror.test hub.test; do ip route add blackhole $(getent hosts $name | cut -d' ' -f1); done",
        )
    yield file
    for host in HOSTS:
        shell(host, "ip route flush type blackhole")


def test_way_back_needs_no_network_and_is_finished_by_the_same_command(offline: Path) -> None:
    second = served(SECOND)
    with start("rollback", "-i", str(offline)) as process:
        until(
            "the first host is switched",
            lambda: on_console(FIRST, "readlink", "/opt/vllm/current").strip() == "releases/demo",
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert shell(FIRST, "readlink /opt/vllm/rollback") == "releases/demo"
    assert served(SECOND) == second, "the first host goes alone"
    assert Api(SECOND).chat()

    run = play("rollback", "-i", str(offline))
    assert run.rc == 0, run.output
    for host, release in NEXT.items():
        links = shell(host, "readlink /opt/vllm/current /opt/vllm/previous; ls /opt/vllm").split()
        assert links[:2] == ["releases/demo", f"releases/{release}"]
        assert "rollback" not in links
        assert Api(host).chat()
        follows_release(host, OLD_DRIVER)


def test_sweep_keeps_the_number_and_what_current_and_previous_name() -> None:
    for host in HOSTS:
        shell(host, f"mkdir -p {RELEASES}/torn/bin {RELEASES}/old-1 {RELEASES}/old-2 /opt/vllm/tools/uv-0.1.0")
        for day, release in enumerate(("old-1", "old-2"), start=1):
            shell(
                host,
                f"cp {RELEASES}/demo/release.json {RELEASES}/{release}/; touch -d 2026-01-0{day} {RELEASES}/{release}/release.json",
            )
    before = [served(host) for host in HOSTS]
    for keep, left in ((1, ["old-2"]), (0, [])):
        run = play("site", "--tags", "vllm_service", "--extra-vars", f"vllm_service_keep_releases={keep}")
        assert run.rc == 0, run.output
        for host, release in NEXT.items():
            assert shell(host, f"ls {RELEASES}").split() == ["demo", release, *left]
            assert shell(host, "ls /opt/vllm/tools | grep -c '^uv-'") == "1"
    assert [served(host) for host in HOSTS] == before
    assert f"libcuda1_{NEW_DRIVER}-1_amd64.deb" in shell(SECOND, f"ls {PACKAGES}"), (
        "its previous release names that driver"
    )
