# SPDX-License-Identifier: Apache-2.0
"""A replica that is left alone, with real vLLM: after each fault the right state, the right words in the journal, nothing orphaned, and serving again."""

from __future__ import annotations

import json
import re
import time
import typing as t
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import yaml
from conftest import INSTANCE, ROOT, UNIT, Api, describe, play, shell

FLEET, HOST = "serving", "h20-81"
API = Api(HOST, fleet=FLEET)
WATCHDOG = f"vllm-watchdog@{INSTANCE}.service"
READY = f"/run/vllm/{INSTANCE}/ready"
ENGINE, WORKER = "^VLLM::EngineCore", "^VLLM::Worker"
#: Seconds in which an instance is back: the watchdog's strikes, the pause before a restart, and a start on two cores that others use as well.
BACK_SECONDS = 180


def now() -> str:
    return shell(HOST, "date +%s.%N")


def journal(since: str) -> str:
    return shell(HOST, f"journalctl --unit {UNIT} --unit {WATCHDOG} --since @{since} --no-pager --output cat")


def is_ready() -> bool:
    return shell(HOST, f"test -e {READY} && echo yes || true") == "yes"


def wait(what: str, holds: t.Callable[[], bool], seconds: float = BACK_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, (
            f"not {what} after {seconds} s\n{shell(HOST, 'journalctl --lines 60 --no-pager')}"
        )
        time.sleep(0.5)


def main_process() -> str:
    return shell(HOST, f"systemctl show --value --property=MainPID {UNIT}")


def serves(before: str) -> bool:
    """Whether another process than before is in service."""
    return (
        is_ready()
        and main_process() not in ("0", before)
        and shell(HOST, f"systemctl is-active {UNIT} || true") == "active"
    )


def orphans() -> list[str]:
    """Processes of the user vllm outside the units of the instance."""
    script = "for pid in $(pgrep -u vllm || true); do echo $pid $(cat /proc/$pid/cgroup 2>/dev/null || true); done"
    lines = shell(HOST, script).splitlines()
    return [line for line in lines if len(line.split()) > 1 and not line.endswith((UNIT, WATCHDOG))]


def start() -> None:
    shell(HOST, f"systemctl reset-failed {UNIT} || true; systemctl start {UNIT}")
    assert is_ready()


@pytest.fixture(autouse=True)
def in_service() -> t.Iterator[None]:
    """Each fault meets an instance that serves, with all its starts before it."""
    shell(HOST, f"systemctl reset-failed {UNIT} || true")
    if not is_ready():
        start()
    yield
    assert orphans() == []


def test_ready_is_a_state_that_others_read() -> None:
    state = json.loads(shell(HOST, f"runuser -u nobody -- cat {READY}"))
    assert state["release"] == "demo"
    assert state["tokens_per_second"] > 0
    assert state["pid"] == int(main_process())
    said = shell(HOST, f"journalctl --unit {UNIT} --no-pager --output cat")
    assert "warm-up round 2: " in said
    assert re.search(r"warm: [\d.]+ tokens/s, first token after [\d.]+ s; in service", said)
    assert "ready since" in play("status", "--extra-vars", f"fleet_hosts={FLEET}").words


def test_the_exposure_of_the_units_is_small() -> None:
    for unit in (UNIT, WATCHDOG):
        rated = re.search(
            r"exposure level for \S+: ([0-9.]+)", shell(HOST, f"systemd-analyze security --no-pager {unit}")
        )
        assert rated
        assert float(rated[1]) <= 2.5


@pytest.mark.parametrize(
    ("victim", "words"),
    [(ENGINE, "EngineDeadError"), ("", "Failed with result 'signal'")],
    ids=["engine", "api server"],
)
def test_a_killed_process_takes_the_rest_with_it_and_all_comes_back(victim: str, words: str) -> None:
    before, since = main_process(), now()
    shell(HOST, f"kill -9 $(pgrep -u vllm -f '{victim}')" if victim else f"kill -9 {before}")
    wait("out of service", lambda: not is_ready(), 30)
    wait("serving again", lambda: serves(before))
    said = journal(since)
    assert words in said
    assert "in service" in said
    assert API.chat()


def test_a_hung_engine_is_ended_and_comes_back() -> None:
    before, since = main_process(), now()
    shell(HOST, f"kill -STOP $(pgrep -u vllm -f '{ENGINE}')")
    assert (
        shell(HOST, f"curl --silent --output /dev/null --write-out '%{{http_code}}' http://127.0.0.1:{API.port}/health")
        == "200"
    )
    wait("out of service", lambda: not is_ready(), 60)
    wait("serving again", lambda: serves(before))
    said = journal(since)
    assert "strike 3 of 3: no token within" in said
    assert f"error: {UNIT} is not ready any more: it has produced no token in 3 beats ->" in said
    assert API.chat()


def test_an_xid_that_no_restart_mends_ends_nothing_and_takes_the_ready_state_away() -> None:
    before, since = main_process(), now()
    try:
        line = "NVRM: Xid (PCI:0000:18:00): 95, pid='<unknown>', name=<unknown>, Uncontained: FBHUB"
        describe(HOST, {"base": "h20_141g", "faults": {"kernel_log": [line]}}, FLEET)
        wait("withdrawn", lambda: not is_ready(), 30)
        assert "Xid 95 of 0000:18:00.0" in journal(since)
        assert "-> reset the GPU or reboot the host" in journal(since)
        assert "not ready: Xid 95" in play("status", "--extra-vars", f"fleet_hosts={FLEET}").words
        assert main_process() == before
    finally:
        describe(HOST, "h20_141g", FLEET)
    shell(HOST, f"systemctl restart {UNIT}")
    assert is_ready()


def refused(words: str) -> None:
    """A start that is refused with these words, and an instance that is neither ready nor running then."""
    since = now()
    assert shell(HOST, f"systemctl start {UNIT} 2>&1 || echo refused").endswith("refused")
    said = journal(since)
    assert re.search(words, said), said
    assert not is_ready()
    shell(HOST, f"systemctl stop {UNIT}; systemctl reset-failed {UNIT} || true")


@contextmanager
def running(script: str) -> t.Iterator[str]:
    """A process of the host beside the service, by its transient unit."""
    shell(HOST, f"systemd-run --quiet --collect --unit=fault {script}")
    time.sleep(1)
    try:
        yield shell(HOST, "systemctl show --value --property=MainPID fault.service")
    finally:
        shell(HOST, "systemctl stop fault.service || true")


def test_what_is_in_the_way_of_a_start_is_named() -> None:
    shell(HOST, f"systemctl stop {UNIT}")
    listen = f"python3 -m http.server --bind 127.0.0.1 {API.port}"
    with running(listen) as pid:
        refused(
            rf"error: port {API.port} is held by \S*python3 -m http.server .*\(pid {pid}, user root, fault.service\) -> stop it"
        )
    held = {"0000:18:00.0": {"memory_used_mib": 135009, "held_by": "sleep 4242"}}
    try:
        with running("--uid=nobody sleep 4242") as pid:
            describe(HOST, {"base": "h20_141g", "faults": {"gpus": held}}, FLEET)
            refused(rf"error: GPU 0000:18:00.0 is held by \S*sleep 4242 \(pid {pid}, user nobody, fault.service\) ->")
        describe(HOST, {"base": "h20_141g", "faults": {"fabric": {"state": "Completed", "status": "Failure"}}}, FLEET)
        refused(
            r"error: the fabric of GPU 0000:18:00.0 is Completed, Failure -> journalctl --unit nvidia-fabricmanager"
        )
        describe(HOST, {"base": "h20_141g", "faults": {"gpus": {"0000:18:00.0": {"row_remap_pending": True}}}}, FLEET)
        refused(r"error: the driver asks for a recovery of GPU 0000:18:00.0: Reset ->")
    finally:
        describe(HOST, "h20_141g", FLEET)
    # A full disk where the unit writes: it comes back by itself when there is room.
    shell(HOST, "mount -t tmpfs -o size=8m,mode=0750,uid=$(id -u vllm),gid=$(id -g vllm) full /var/lib/vllm")
    try:
        refused(r"error: /var/lib/vllm has \d+ MiB free, a start needs 1024 -> free some")
    finally:
        shell(HOST, "umount /var/lib/vllm")
    # An orphan of the service's own user is swept.
    since = now()
    with running("--uid=vllm sleep 4243"):
        start()
        assert re.search(r"ended an orphan: \S*sleep 4243 \(pid \d+, user vllm, fault.service\)", journal(since))
    assert API.chat()


def test_a_wrong_flag_is_refused_before_the_configuration_that_serves_is_replaced() -> None:
    before, config = main_process(), shell(HOST, f"cat /etc/vllm/{INSTANCE}.yaml")
    instance = {"name": INSTANCE, "profile": "cpu_test", "port": API.port, "arguments": {"max-num-seqs": "many"}}
    done = play(
        "site",
        "--tags",
        "vllm_service",
        "--extra-vars",
        json.dumps({"fleet_hosts": FLEET, "fleet_instances": [instance]}),
    )
    assert done.rc == 2, done.output
    assert "vLLM does not take" in done.words
    assert shell(HOST, f"cat /etc/vllm/{INSTANCE}.yaml") == config
    assert main_process() == before
    assert API.chat()


def test_requests_in_flight_finish_on_a_planned_stop() -> None:
    tokens = 700
    body = {"model": INSTANCE, "prompt": "1", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    headers = {"Authorization": f"Bearer {API.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{API.url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        response.readline()
        shell(HOST, f"systemctl stop --no-block {UNIT}")
        wait("not ready", lambda: not is_ready(), 5)
        state = shell(HOST, f"systemctl show --value --property=ActiveState {UNIT}")
        lines = [line.decode().removeprefix("data: ").strip() for line in response]
    assert state == "deactivating", "the answer was over before the stop, so this test would prove nothing"
    assert lines[-2:] == ["[DONE]", ""]
    usage = next(json.loads(line)["usage"] for line in reversed(lines) if line.startswith("{"))
    assert usage["completion_tokens"] == tokens
    wait("stopped", lambda: shell(HOST, f"systemctl is-active {UNIT} || true") == "inactive", 30)
    assert shell(HOST, "pgrep -u vllm || true") == ""
    start()


def test_a_key_is_rotated_and_shows_nowhere() -> None:
    file = ROOT / ".testbed" / FLEET / "api_key"
    old = API.key
    file.write_text("n" + old[1:][::-1] + "\n", encoding="utf-8")
    done = play("site", "--tags", "vllm_service", "--diff", "--extra-vars", f"fleet_hosts={FLEET}")
    assert done.rc == 0, done.output
    assert API.chat()
    request = urllib.request.Request(f"{API.url}/v1/models", headers={"Authorization": f"Bearer {old}"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=60)
    for key in (old, API.key):
        assert key not in done.output
        assert key not in shell(HOST, "ps -eo args")
        assert key not in shell(HOST, "journalctl --no-pager --output cat")
    readable = shell(
        HOST, f"grep -rlF {API.key} /etc /run/vllm /var/lib/vllm /usr/local 2>/dev/null || true"
    ).splitlines()
    assert readable == [f"/etc/vllm/{INSTANCE}.env"]
    assert shell(HOST, f"stat --format='%a %U %G' {readable[0]}") == "640 root vllm"
    assert yaml.safe_load(shell(HOST, f"cat /etc/vllm/{INSTANCE}.yaml"))["port"] == API.port
