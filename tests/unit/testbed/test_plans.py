# SPDX-License-Identifier: Apache-2.0
"""The plans of containers: what a host boots with and sees, and what makes another container of a service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from testbed import LABEL, ROOT, ROOT_LABEL, plans
from unit.testbed.sample import DEMO, WHERE


def test_a_host_boots_systemd_and_sees_its_hardware() -> None:
    plan = plans.host_plan(DEMO, DEMO.hosts[1], WHERE["h20-02"], "image:tag", ["/srv/wheels"])
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
    assert f"{parts}/sys:/etc/testbed/sys:ro" in options["volumes"]
    assert f"{parts}/hardware.json:/etc/testbed/hardware.json:ro" in options["volumes"]
    assert "/srv/wheels:/srv/wheels:ro" in options["volumes"]


def test_hosts_share_the_folders_that_their_fleet_names() -> None:
    wide = replace(DEMO, shared=("/opt/vllm",))
    made = [plans.host_plan(wide, host, WHERE[host.name], "image:tag", []).options["volumes"] for host in wide.hosts]
    assert all("h20-demo-opt-vllm:/opt/vllm:rw" in volumes for volumes in made)


def test_an_isolated_host_shares_nothing_and_knows_no_names() -> None:
    wide, host = replace(DEMO, shared=("/opt/vllm",)), replace(DEMO.hosts[1], isolated=True)
    volumes = plans.host_plan(wide, host, WHERE["h20-02"], "image:tag", ["/srv/wheels"]).options["volumes"]
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in volumes}
    assert "/var/cache/h20-fleet" not in mounted
    assert "/opt/vllm" not in mounted
    assert "/srv/wheels" not in mounted
    lines = Path(mounted["/etc/resolv.conf"]).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == []


def test_services_answer_to_their_names_and_follow_their_program(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.mkdir()
    (program / "one.py").write_text("one")

    def plan() -> plans.Plan:
        return plans.service_plan(DEMO, "hub", WHERE, "image:tag", ["python3"], program, ["cdn.hub.test"])

    first = plan()
    assert (first.name, first.address, first.aliases) == ("demo-hub", "172.30.0.2", ("hub.test", "cdn.hub.test"))
    assert f"{program}:/srv/server:ro" in first.options["volumes"]
    assert first.spec == plan().spec
    (program / "one.py").write_text("two")
    assert first.spec != plan().spec


def test_the_hub_runs_the_package_that_is_mounted() -> None:
    hub, mirror = plans.service_plans(DEMO, WHERE, "image:tag")
    mounted = {Path(volume.split(":")[1]) for volume in hub.options["volumes"]}
    command = hub.options["command"]
    assert Path(hub.options["working_dir"]) / command[command.index("-m") + 1] in mounted
    assert mirror.options["volumes"] == [f"{plans.SERVICES / 'mirror'}:/srv/root:ro"]
