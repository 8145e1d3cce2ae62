# SPDX-License-Identifier: Apache-2.0
"""One replica over two hosts: the first answers over the network that the role chose, and what happens to one of them happens to both."""

from __future__ import annotations

import json
import re
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

import docker
import pytest
from conftest import INSTANCE, UNIT, Api, Run, on_console, play, shell

FLEET = "replica"
HEAD, OTHER = HOSTS = ["h20-91", "h20-92"]
API = Api(HEAD, fleet=FLEET)
WATCHDOG = UNIT.replace("vllm@", "vllm-watchdog@")
#: The second network of the hosts, beside that of their default route.
ADDRESS = {host: f"10.91.0.{host.removeprefix('h20-')}" for host in HOSTS}
READY_SECONDS = 300


def run(playbook: str, *arguments: str, **variables: t.Any) -> Run:
    return play(playbook, "--extra-vars", json.dumps({"fleet_hosts": FLEET, **variables}), *arguments)


def journal(host: str) -> str:
    """What the unit has said in its latest start."""
    invocation = shell(host, f"systemctl show --value --property=InvocationID {UNIT}")
    return shell(host, f"journalctl --no-pager --output cat _SYSTEMD_INVOCATION_ID={invocation}")


def systemctl(host: str, *arguments: str) -> str:
    """What systemctl prints; "" where the host is on its way down or up."""
    try:
        said = on_console(host, "systemctl", *arguments, UNIT).strip()
    except docker.errors.APIError:
        return ""
    return "" if "bus" in said else said


def starts() -> dict[str, str]:
    """Which start of its unit each host is in; "" between two."""
    return {host: systemctl(host, "show", "--value", "--property=InvocationID") for host in HOSTS}


def wait_until(met: t.Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not met():
        assert time.monotonic() < deadline, f"after {READY_SECONDS} s: {what}\n{journal(HEAD)}\n{journal(OTHER)}"
        time.sleep(1)


def active(host: str) -> bool:
    return systemctl(host, "is-active") == "active"


def answers_again(before: dict[str, str]) -> None:
    """Both hosts are in another start than before, by their own means, and the replica answers."""
    wait_until(lambda: all(starts()[host] not in ("", before[host]) for host in HOSTS), "not both have started anew")
    wait_until(lambda: all(map(active, HOSTS)), "not both are active")
    assert API.chat()


def test_the_first_host_answers_and_the_other_has_a_part_but_no_api() -> None:
    assert all(map(active, HOSTS))
    assert API.chat()
    assert shell(OTHER, "ss --no-header --tcp --listening --numeric 'sport = :8000'") == ""
    said = {host: journal(host) for host in HOSTS}
    assert f"met: {HEAD}, {OTHER}; rank 0 of 2" in said[HEAD]
    assert f"met: {HEAD}, {OTHER}; rank 1 of 2" in said[OTHER]
    assert "warm: " in said[HEAD]
    states = {host: json.loads(shell(host, f"cat /run/vllm/{INSTANCE}/ready")) for host in HOSTS}
    assert states[OTHER] == {name: states[HEAD][name] for name in ("since", "release")}
    watched = {host: shell(host, f"systemctl is-active {WATCHDOG} || true").strip() for host in HOSTS}
    assert watched == {HEAD: "active", OTHER: "inactive"}
    assert "rank 1 in world size 2 is assigned as DP rank 0, PP rank 0, PCP rank 0, TP rank 1" in said[OTHER]


def test_torch_says_that_it_took_the_interface_of_the_role_and_no_other_carries_data() -> None:
    connected = re.findall(
        r"client socket has connected to \[::ffff:([\d.]+)\]:(\d+) on .*addr=\[::ffff:([\d.]+)\]", journal(OTHER)
    )
    assert connected
    assert {(to, source) for to, _port, source in connected} == {(ADDRESS[HEAD], ADDRESS[OTHER])}
    lines = shell(OTHER, "ss --no-header --tcp --numeric --processes state established | grep -v ':22 '").splitlines()
    ends = [
        [end.replace("[::ffff:", "").strip("[]").rpartition(":")[0].strip("]") for end in line.split()[2:4]]
        for line in lines
    ]
    between = [pair for pair in ends if not pair[0].startswith("127.")]
    # Rendezvous, the units, gloo's pairs and vLLM's messages.
    assert len(between) > 2, lines
    assert {tuple(pair) for pair in between} == {(ADDRESS[OTHER], ADDRESS[HEAD])}, lines


def test_status_shows_each_part() -> None:
    shown = run("status").output
    for rank, host in enumerate(HOSTS):
        assert re.search(rf"{host} .* {INSTANCE} \(replica, rank {rank}\) +ready since ", shown), shown


REFUSED: dict[str, tuple[list[str], dict[str, t.Any], str]] = {
    "without a host": (["--limit", HEAD], {}, f"replica replica is one, and {OTHER} is not in this run"),
    "host by host": ([], {"fleet_serial": 1}, "fleet_serial 1 splits it"),
    "by a place of one's own": (
        [],
        {"fleet_instances": [{"name": INSTANCE, "profile": "cpu_test", "port": 8000, "arguments": {"tensor-parallel-size": 2, "master-port": 1}}]},
        "sets master-port in its arguments, which the role sets itself",
    ),
    "of a layout that two cannot share": (
        [],
        {"fleet_instances": [{"name": INSTANCE, "profile": "cpu_test", "port": 8000}]},
        "has the layout TP1 of 1 GPUs, which 2 hosts cannot share evenly",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_split_the_replica_is_refused_before_anything_changes(name: str) -> None:
    arguments, variables, says = REFUSED[name]
    done = run("site", *arguments, **variables)
    assert done.rc == 2, done.output
    assert says in done.words
    assert "changed=0" in done.output
    assert not re.search(r"changed=[1-9]", done.output), done.output


def test_a_rollback_host_by_host_is_refused_for_both() -> None:
    done = run("rollback", fleet_rollback_to="demo")
    assert done.rc == 2, done.output
    for host in HOSTS:
        assert f"{host}: replica replica is one, and fleet_serial [1, '100%'] splits it" in done.words


def test_a_host_that_cannot_go_on_keeps_the_other_where_it_is() -> None:
    """The settings are new, and another program has the port of the second host's unit. The stop of that unit lets the first finish what it answers."""
    before = starts()
    body = {"model": INSTANCE, "prompt": "a", "max_tokens": 16, "ignore_eos": True}
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(API.call, "/v1/completions", body)
        time.sleep(1)
        assert not answer.done()
        shell(OTHER, f"systemctl stop {UNIT}")
        assert answer.result()["usage"]["completion_tokens"] == 16
    shell(OTHER, "systemd-run --quiet --unit=squatter python3 -m http.server 8000")
    wait_until(lambda: starts()[HEAD] not in ("", before[HEAD]), "the first has not ended with the other")
    shell(
        OTHER,
        "for _ in $(seq 20); do ss --no-header --tcp --listening --numeric 'sport = :8000' | grep -q . && break; sleep 0.5; done",
    )
    waiting = starts()[HEAD]
    done = run("site", "--tags", "vllm_service", vllm_service_shutdown_timeout=11)
    shell(OTHER, "systemctl stop squatter")
    assert done.rc == 2, done.output
    assert f"port 8000 of instance {INSTANCE} is held by" in done.words
    assert f"replica replica is one, and this run has failed on {OTHER}" in done.words
    assert starts()[HEAD] == waiting


def test_new_settings_restart_both_as_one() -> None:
    before = starts()
    done = run("site", "--tags", "vllm_service", vllm_service_shutdown_timeout=11)
    assert done.rc == 0, done.output
    assert all(starts()[host] != before[host] for host in HOSTS)
    assert all(map(active, HOSTS))
    assert API.chat()


@pytest.mark.parametrize("host", HOSTS)
def test_the_replica_comes_back_when_a_host_reboots(host: str) -> None:
    before = starts()
    on_console(host, "systemctl", "--no-block", "reboot")
    answers_again(before)


def test_a_worker_that_is_killed_ends_the_replica_and_it_comes_back() -> None:
    before = starts()
    shell(OTHER, "pkill --signal KILL --full '[V]LLM::Worker'")
    answers_again(before)
    assert f"error: {OTHER} has left the replica" in shell(HEAD, f"journalctl --no-pager --output cat --unit {UNIT}")


def test_a_worker_that_hangs_on_the_second_host_is_found_by_the_first_and_both_start_again() -> None:
    before = starts()
    shell(OTHER, "pkill --signal STOP --full '[V]LLM::Worker'")
    answers_again(before)
    said = shell(HEAD, f"journalctl --no-pager --output cat --unit {UNIT} --unit {WATCHDOG}")
    assert "strike 3 of 3: no token within" in said
    assert f"error: {HEAD} has left the replica" in shell(OTHER, f"journalctl --no-pager --output cat --unit {UNIT}")
