# SPDX-License-Identifier: Apache-2.0
"""Fleets: their files, the containers that are planned from them, and what an inventory is told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import testbed
from docker import DockerClient
from docker.errors import NotFound
from testbed import LABEL, ROOT, ROOT_LABEL, SetupError, Stopwatch, engine, fleet, hardware
from testbed.environment import Environment
from testbed.fleet import Fleet, Host, Plan

DEMO = Fleet("demo", (Host("h20-01", "h20_141g"), Host("h20-02", "h20_141g", {"/small": "size=8m"})))
WHERE = fleet.addresses(DEMO, IPv4Network("172.30.0.0/16"))


@pytest.mark.parametrize("name", fleet.names())
def test_fleets_of_the_test_bed_are_complete(name: str) -> None:
    for host in fleet.load(name).hosts:
        hardware.load(host.hardware)


def test_host_names_are_unique_over_all_fleets() -> None:
    hosts = [host.name for name in fleet.names() for host in fleet.load(name).hosts]
    assert len(hosts) == len(set(hosts))


@pytest.mark.parametrize(
    "text", ["", "hosts:", "hosts: {a: {}}", "hosts: {a: {hardware: x, memory: 3}}", "hosts: [a]", "{"]
)
def test_a_file_that_is_no_fleet_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match=r"fleets/x\.yml is not a fleet"):
        fleet.parse("x", text)


def test_an_unknown_fleet_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match=r"no fleet 'dmo'; there are: demo, molecule"):
        fleet.load("dmo")


def test_addresses_are_fixed_by_the_order_of_the_file() -> None:
    assert WHERE == {
        "demo-hub": "172.30.0.2",
        "demo-mirror": "172.30.0.3",
        "h20-01": "172.30.0.11",
        "h20-02": "172.30.0.12",
    }


def test_a_host_boots_systemd_and_sees_its_hardware() -> None:
    plan = fleet.host_plan(DEMO, DEMO.hosts[1], WHERE["h20-02"], "image:tag", ["/srv/wheels"])
    options = plan.options
    assert options["hostname"] == plan.name == "h20-02"
    assert options["labels"] == {LABEL: "demo", ROOT_LABEL: str(ROOT)}
    assert options["cgroupns"] == "host"
    assert options["stop_signal"] == "SIGRTMIN+3"
    assert options["restart_policy"] == {"Name": "always"}
    assert options["tmpfs"]["/small"] == "size=8m"
    assert {"/run", "/run/lock"} < set(options["tmpfs"])
    parts = ROOT / ".testbed" / "demo" / "hosts" / "h20-02"
    assert f"{parts}/pci:/sys/bus/pci/devices:ro" in options["volumes"]
    assert f"{parts}/module:/sys/module:rw" in options["volumes"]
    assert f"{parts}/hardware.json:/etc/testbed/hardware.json:ro" in options["volumes"]
    assert "/srv/wheels:/srv/wheels:ro" in options["volumes"]


def test_services_answer_to_their_names_and_follow_their_program(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text("one")
    first = fleet.service_plan(DEMO, "hub", WHERE, "image:tag", ["python3"], [program])
    assert (first.name, first.address, first.aliases) == ("demo-hub", "172.30.0.2", ("hub.test",))
    assert first.spec == fleet.service_plan(DEMO, "hub", WHERE, "image:tag", ["python3"], [program]).spec
    program.write_text("two")
    assert first.spec != fleet.service_plan(DEMO, "hub", WHERE, "image:tag", ["python3"], [program]).spec


class Box:
    """A container of the engine as far as `ensure_container` looks at it."""

    def __init__(self, labels: Mapping[str, str], status: str) -> None:
        self.labels, self.status, self.calls = labels, status, list[str]()

    def start(self) -> None:
        self.calls.append("start")

    def remove(self, force: bool) -> None:
        self.calls.append(f"remove {force}")


def engine_with(box: Box | None) -> tuple[DockerClient, list[dict[str, Any]]]:
    """Return an engine in which every container is `box`, and the list of what is created in it."""
    created: list[dict[str, Any]] = []

    def get(name: str) -> Box:
        if box is None:
            raise NotFound(name)
        return box

    def create(**options: Any) -> Box:
        created.append(options)
        return Box({}, "created")

    api = SimpleNamespace(create_endpoint_config=lambda **options: options)
    return cast(DockerClient, SimpleNamespace(api=api, containers=SimpleNamespace(get=get, create=create))), created


PLAN = Plan("h20-01", "172.30.0.11", {"image": "i", "labels": DEMO.labels})
OURS = {**DEMO.labels, fleet.SPEC_LABEL: PLAN.spec}


@pytest.mark.parametrize(
    ("labels", "status", "renew", "said", "calls"),
    [
        (OURS, "running", False, "running", []),
        (OURS, "exited", False, "started again", ["start"]),
        (OURS, "running", True, "running", []),
        (DEMO.labels, "running", True, "renewed", ["remove True"]),
    ],
)
def test_what_runs_is_left_alone(labels: dict[str, str], status: str, renew: bool, said: str, calls: list[str]) -> None:
    box = Box(labels, status)
    client, created = engine_with(box)
    assert fleet.ensure_container(client, DEMO, PLAN, renew) == said
    assert box.calls == calls
    assert bool(created) == (said == "renewed")


def test_a_host_of_another_recipe_stays_and_is_named() -> None:
    box = Box(DEMO.labels, "running")
    assert "earlier recipe" in fleet.ensure_container(engine_with(box)[0], DEMO, PLAN, renew=False)
    assert box.calls == []


def test_a_missing_container_is_created_at_its_address() -> None:
    client, created = engine_with(None)
    assert fleet.ensure_container(client, DEMO, PLAN, renew=False) == "created"
    assert created[0]["networking_config"] == {"h20-demo": {"ipv4_address": "172.30.0.11", "aliases": []}}
    assert created[0]["labels"] == OURS


@pytest.mark.parametrize(
    ("labels", "message"), [({}, "is not the test bed's"), ({ROOT_LABEL: "/else"}, "test bed of /else")]
)
def test_a_name_that_someone_else_uses_stops_the_test_bed(labels: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        fleet.existing(engine_with(Box(labels, "running"))[0], "h20-01")


def test_ssh_reads_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(fleet.ssh_config(DEMO, WHERE))
    answer = subprocess.run(
        ["ssh", "-G", "-F", str(config), "h20-02"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.split(" ", 1) for line in answer.splitlines())
    assert (settings["hostname"], settings["user"], settings["stricthostkeychecking"]) == ("172.30.0.12", "ops", "true")
    assert settings["identityfile"] == str(fleet.KEY)
    assert settings["userknownhostsfile"] == str(DEMO.state / "known_hosts")


def test_limits_are_read_in_their_own_units() -> None:
    table = "Max locked memory         unlimited            unlimited            bytes     \nMax open files            1024  20000  files"
    assert fleet.hard_limit(table, "Max locked memory") == "infinity"
    assert fleet.hard_limit(table, "Max open files") == 20000
    with pytest.raises(SetupError, match="does not tell its limits"):
        fleet.hard_limit("", "Max open files")


def test_an_inventory_is_told_what_it_needs() -> None:
    known = fleet.description(DEMO, Environment(), WHERE, "f" * 40, {"nofile": 20000, "memlock": "infinity"})
    assert known == {
        "fleet": "demo",
        **Environment().as_json(),
        "nvidia": {"key_fingerprint": "f" * 40},
        "limits": {"nofile": 20000, "memlock": "infinity"},
        "hosts": {"h20-01": {"address": "172.30.0.11"}, "h20-02": {"address": "172.30.0.12"}},
    }


def test_the_fleet_itself_is_not_behind_the_proxy() -> None:
    behind = Environment(http_proxy="http://p:3128", no_proxy=".site")
    no_proxy = fleet.description(DEMO, behind, WHERE, "", {})["proxy"]["no_proxy"].split(",")
    assert no_proxy[0] == ".site"
    assert {"hub.test", "mirror.test", "h20-01", "172.30.0.12"} <= set(no_proxy)


def test_files_are_for_their_owner_alone_and_written_once(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    fleet.write(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600
    os.utime(path, (1, 1))
    fleet.write(path, "one")
    assert path.stat().st_mtime == 1
    fleet.write(path, "two")
    assert path.read_text() == "two"


def test_long_work_shows_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(testbed, "HEARTBEAT", 0.2)
    testbed.run("image", ["sh", "-c", "echo unpacking; sleep 0.7"], tmp_path / "log" / "image.log")
    assert "s  unpacking" in capsys.readouterr().out


def test_work_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"(?s)status 3.*no space left"):
        testbed.run("image", ["sh", "-c", "echo no space left >&2; exit 3"], tmp_path / "image.log")


def test_stages_are_timed_in_order() -> None:
    watch = Stopwatch()
    for name in ("image", "boot"):
        with watch.stage(name):
            pass
    assert list(watch.seconds) == ["image", "boot"]
    assert watch.summary() == "image 0.0 s   boot 0.0 s   total 0.0 s"


def test_only_a_running_daemon_is_taken_for_one() -> None:
    assert not engine.is_dockerd(os.getpid())
    assert not engine.is_dockerd(2**22 + 1)


def test_the_command_line_explains_itself() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "testbed", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    assert "up | down | clean | status" in answer.stdout
