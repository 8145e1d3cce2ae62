# SPDX-License-Identifier: Apache-2.0
"""Hosts of one replica over real sockets: the interface that the role chose carries the data, and a fault ends with its name."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
from conftest import ROOT, Run, describe, play, shell, start

FLEET = "fabric"
HOSTS = ["h20-71", "h20-72", "h20-73", "h20-74"]
REPORT = ROOT / ".testbed/reports/fabric/fabric.json"
#: A second network of the hosts beside that of their default route: a virtual interface on the first, so that both are real sockets.
RAIL, SUBNET = "rail0", "10.71.0"
PORT = 29500
SLOW = "50mbit"


def everywhere(work: t.Callable[[str], t.Any], hosts: t.Sequence[str] = HOSTS) -> dict[str, t.Any]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(hosts, pool.map(work, hosts), strict=True))


def rail(host: str) -> str:
    return f"{SUBNET}.{host.removeprefix('h20-')}"


def slow(host: str, device: str, to: str = "") -> None:
    """Shape what a host sends over a device: all of it, or what goes to one address."""
    if not to:
        shell(host, f"tc qdisc replace dev {device} root tbf rate {SLOW} burst 16kb latency 50ms")
        return
    shell(
        host,
        f"""
        tc qdisc replace dev {device} root handle 1: htb default 10 r2q 10000
        tc class add dev {device} parent 1: classid 1:10 htb rate 10gbit
        tc class add dev {device} parent 1: classid 1:20 htb rate {SLOW}
        tc filter add dev {device} parent 1: protocol ip u32 match ip dst {to}/32 flowid 1:20
        """,
    )


def fast(host: str) -> None:
    shell(host, f"for device in eth0 {RAIL}; do tc qdisc del dev $device root 2>/dev/null || true; done")


def run(playbook: str, *arguments: str, **variables: t.Any) -> Run:
    return play(playbook, "--extra-vars", json.dumps({"fleet_hosts": FLEET, **variables}), *arguments)


def adhoc(host: str, entry: str, **variables: t.Any) -> Run:
    """An entry point of the role, as an operator calls it by hand."""
    role = f"name=h20.fleet.nccl tasks_from={entry}"
    command = [str(Path(sys.executable).with_name("ansible")), "-i", str(ROOT / "molecule/inventory"), host, "--become"]
    command += ["-m", "ansible.builtin.include_role", "-a", role, "-e", json.dumps(variables)]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return Run(done.returncode, done.stdout + done.stderr)


def measured(**variables: t.Any) -> tuple[Run, dict[str, t.Any]]:
    """A run of the playbook and the report that it leaves."""
    REPORT.unlink(missing_ok=True)
    done = run("fabric", **variables)
    assert REPORT.exists(), done.output
    return done, json.loads(REPORT.read_text(encoding="utf-8"))


def named(report: dict[str, t.Any]) -> list[tuple[str, list[str], list[str]]]:
    return [(finding["id"], finding["hosts"], finding["adapters"]) for finding in report["findings"]]


@pytest.fixture(scope="module", autouse=True)
def rails() -> t.Iterator[None]:
    """The second network, and healthy hosts at the end."""

    def add(host: str) -> None:
        shell(host, f"ip link show {RAIL} 2>/dev/null || ip link add link eth0 name {RAIL} type macvlan mode bridge")
        shell(host, f"ip address replace {rail(host)}/24 dev {RAIL}; ip link set {RAIL} up")
        # /sys/class of a host is a copy that its boot made.
        shell(host, f"ln -sfn ../../devices/virtual/net/{RAIL} /sys/class/net/{RAIL}")
        fast(host)

    everywhere(add)
    yield
    everywhere(lambda host: describe(host, "h20_141g", FLEET))
    everywhere(lambda host: shell(host, f"ip link del {RAIL}; rm /sys/class/net/{RAIL}"))


@pytest.fixture(scope="module")
def configured() -> None:
    """The stage, with the second network as that of the replica."""
    done = run("site", "--tags", "nccl", nccl_socket_interfaces=[RAIL])
    assert done.rc == 0, done.output


class Watch:
    """Who is connected with whom while something runs: the addresses of a host's established connections outside SSH."""

    def __init__(self, host: str) -> None:
        self.peers: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(host,))

    def _look(self, host: str) -> None:
        while not self._over.is_set():
            for line in shell(host, "ss --no-header --tcp --numeric state established").splitlines():
                ends = [end.replace("[::ffff:", "").replace("]", "").rpartition(":") for end in line.split()[2:4]]
                if ends[0][2] != "22":
                    self.peers.add(f"{ends[0][0]} {ends[1][0]}")
            time.sleep(0.5)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.usefixtures("configured")
def test_the_interface_of_the_file_carries_the_data_and_nothing_is_left_open() -> None:
    for host in HOSTS:
        assert f"NCCL_SOCKET_IFNAME=={RAIL}" in shell(host, "cat /etc/nccl.conf").splitlines()
    with Watch(HOSTS[1]) as watch:
        done, report = measured(nccl_socket_interfaces=[RAIL])
    assert done.rc == 0, done.output
    assert (report["verdict"], named(report)) == ("fit", [])
    assert [entry["hosts"] for entry in report["measured"]] == [HOSTS]
    assert {peer.split()[0] for peer in watch.peers} == {rail(HOSTS[1])}, watch.peers
    assert {peer.split()[1] for peer in watch.peers} == {rail(host) for host in HOSTS if host != HOSTS[1]}, watch.peers
    for host in HOSTS:
        assert f":{PORT}" not in shell(host, "ss --no-header --tcp --listening --numeric")
        assert shell(host, "pgrep --full '[c]ollectives.py' || true") == ""


@pytest.mark.usefixtures("configured")
def test_torch_and_gloo_say_themselves_that_they_went_over_that_interface() -> None:
    """In their own log, which the program keeps while it runs."""
    pair = HOSTS[:2]

    def logged(host: str) -> str:
        program = (
            "$(echo /opt/vllm/releases/*/bin/python) /opt/vllm/tools/collectives.py --ranks=1 --backend=gloo --nodes=2"
        )
        way = f"--node-rank={pair.index(host)} --master={rail(pair[0])}:{PORT} --interface={RAIL}"
        return shell(
            host,
            f"""
            export TORCH_CPP_LOG_LEVEL=INFO TORCH_DISTRIBUTED_DEBUG=DETAIL GLOO_LOG_LEVEL=DEBUG
            {program} {way} --collective=all_reduce --min-bytes=1048576 --max-bytes=1048576 >/dev/null & measuring=$!
            while kill -0 $measuring 2>/dev/null; do cp /tmp/collectives-*/log-0 /tmp/said 2>/dev/null || true; sleep 0.1; done
            wait $measuring; cat /tmp/said; rm /tmp/said
            """,
        )

    said = everywhere(logged, pair)
    for host, log in said.items():
        assert re.search(r"gloo/transport/tcp/.* is connected to 1\. Expected number of connected peers is: 1", log), (
            log
        )
        ends = set(
            re.findall(r"client socket has connected to \[::ffff:([\d.]+)\]:\d+ on .*addr=\[::ffff:([\d.]+)\]", log)
        )
        assert ends == {(rail(pair[0]), rail(host))}, log


def test_a_host_that_sends_slowly_is_named() -> None:
    slow("h20-73", "eth0")
    done, report = measured()
    fast("h20-73")
    assert done.rc == 2, done.output
    assert named(report) == [("HOST", ["h20-73"], [])]
    assert "HOST h20-73" in done.words
    assert report["findings"][0]["remedy"] in done.words


def test_a_link_that_is_slow_one_way_is_named() -> None:
    address = json.loads((ROOT / ".testbed" / FLEET / "environment.json").read_text(encoding="utf-8"))["hosts"]
    slow("h20-72", "eth0", to=address["h20-73"]["address"])
    done, report = measured()
    fast("h20-72")
    assert done.rc == 2, done.output
    assert named(report) == [("LINK", ["h20-72", "h20-73"], [])]


def test_an_adapter_that_is_slow_is_named() -> None:
    slow("h20-74", RAIL)
    done, report = measured(nccl_socket_interfaces=["eth0", RAIL])
    fast("h20-74")
    assert done.rc == 2, done.output
    assert named(report) == [("ADAPTER", ["h20-74"], [RAIL])]


def test_a_host_that_stops_in_the_middle_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """SSH gives a host up within seconds here; by default that takes a minute and a half."""
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", "-o ServerAliveInterval=2 -o ServerAliveCountMax=3 -o ControlMaster=no")
    monkeypatch.setenv("ANSIBLE_SSH_RETRIES", "0")
    monkeypatch.setenv("ANSIBLE_TIMEOUT", "5")
    container = docker.from_env().containers.get("h20-74")
    REPORT.unlink(missing_ok=True)
    # Slow enough that it is still at it.
    slow("h20-71", "eth0")
    limits = {"nccl_fabric_timeout": 40, "nccl_fabric_floor_gb_s": 0.001, "nccl_fabric_tolerance": 0.999}
    begun = time.monotonic()
    with start("fabric", "--extra-vars", json.dumps({"fleet_hosts": FLEET, **limits})) as process:
        while not shell("h20-74", "pgrep --full '[c]ollectives.py.*--rank=' || true"):
            assert time.monotonic() - begun < 60, "nothing is measured"
        try:
            container.pause()
            output, _none = process.communicate(timeout=240)
        finally:
            container.unpause()
    fast("h20-71")
    assert process.returncode == 4, output
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    assert named(report) == [("SILENT", ["h20-74"], [])], output
    assert report["measured"][-1]["hosts"] == HOSTS[:3]
    assert report["measured"][-1]["busbw_gb_s"] > 0


@dataclasses.dataclass(frozen=True)
class Different:
    """How a host differs from the others, as its description says it, and what it is refused with."""

    host: str
    says: str
    port: dict[str, t.Any] = dataclasses.field(default_factory=dict)


def ports(host: str, **second: t.Any) -> dict[str, t.Any]:
    """Two RoCE ports, of which the second is not as usual."""
    number = host.removeprefix("h20-")
    usual = [
        {"device": "mlx5_0", "address": "0000:19:00.0", "numa_node": 0, "gids": {3: f"::ffff:10.1.0.{number}"}},
        {"device": "mlx5_1", "address": "0000:9b:00.0", "numa_node": 1, "gids": {3: f"::ffff:10.2.0.{number}"}},
    ]
    usual[1] |= second
    each = {"link_layer": "Ethernet", "traffic_class": 106, "rate": "200 Gb/sec (4X HDR)"}
    return {"base": "h20_141g", "faults": {"infiniband": [each | port for port in usual]}}


DIFFERENT = {
    "a port that is down": Different(
        "h20-72",
        "h20-72 differs from the other hosts: state of mlx5_1:1 is DOWN (Polling), while 3 of 4 hosts have ACTIVE (LinkUp)",
        {"state": "1: DOWN", "phys_state": "2: Polling"},
    ),
    "another GID index": Different(
        "h20-73",
        "h20-73 differs from the other hosts: GID index of mlx5_1:1 (RoCE v2, ipv4) is 5, while 3 of 4 hosts have 3",
        {"gids": {5: "::ffff:10.2.0.73"}},
    ),
    "another traffic class": Different(
        "h20-74",
        "the ports send with different traffic classes (mlx5_0:1 106, mlx5_1:1 160)",
        {"traffic_class": 160},
    ),
}


@pytest.fixture(scope="module")
def refused() -> Run:
    """One run of the stage over hosts that each differ in something else, and in the MTU."""
    faults = {case.host: case.port for case in DIFFERENT.values()}
    everywhere(lambda host: describe(host, ports(host, **faults.get(host, {})), FLEET))
    shell("h20-74", "ip link set eth0 mtu 1400")
    try:
        return run("site", "--tags", "nccl", nccl_bandwidth_measure="never")
    finally:
        shell("h20-74", "ip link set eth0 mtu 1500")


def failure(done: Run, host: str) -> str:
    sections = re.findall(rf"^fatal: \[{host}\]: FAILED! =>(.*?)^(?=\S)", done.output, re.MULTILINE | re.DOTALL)
    return " ".join(" ".join(sections).split())


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_host_of_a_replica_that_differs_is_refused_with_what_differs(name: str, refused: Run) -> None:
    case = DIFFERENT[name]
    assert case.says in failure(refused, case.host), refused.output
    assert refused.rc == 2


def test_another_mtu_is_named_and_the_host_like_most_goes_on(refused: Run) -> None:
    assert "MTU of the default route is 1400, while 3 of 4 hosts have 1500" in failure(refused, "h20-74")
    assert failure(refused, "h20-71") == ""
    assert re.search(r"^h20-71 .* failed=0 ", refused.output, re.MULTILINE), refused.output
    settings = dict(line.split("=", 1) for line in shell("h20-71", "grep -v ^# /etc/nccl.conf").splitlines())
    assert settings == {
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_GID_INDEX": "3",
        "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
        "NCCL_IB_TC": "106",
        "NCCL_SOCKET_IFNAME": "=eth0",
    }


def test_hosts_that_serve_alone_are_warned_of(refused: Run) -> None:
    """Of their addresses nothing is read, so an index that differs is not seen."""
    assert refused.rc == 2
    done = run("site", "--tags", "nccl", nccl_nodes="single", nccl_bandwidth_measure="never")
    assert done.rc == 0, done.output
    assert "h20-72 differs from the other hosts: state of mlx5_1:1 is DOWN (Polling)" in done.words
    assert (
        "h20-74 differs from the other hosts: traffic class of mlx5_1:1 is 160, while 3 of 4 hosts have 106"
        in done.words
    )
    assert "h20-73 differs" not in done.words


def test_no_address_of_roce_is_refused(refused: Run) -> None:
    assert refused.rc == 2
    describe("h20-72", ports("h20-72", gids={}), FLEET)
    done = run("site", "--tags", "nccl", "--limit", "h20-72", nccl_bandwidth_measure="never")
    assert done.rc == 2, done.output
    assert "mlx5_1:1 has no RoCE v2 address of family ipv4" in failure(done, "h20-72")


def test_too_few_forks_and_a_single_host_are_refused_before_anything_is_measured() -> None:
    everywhere(lambda host: describe(host, "h20_141g", FLEET))
    REPORT.unlink(missing_ok=True)
    done = run("fabric", "--forks", "2")
    assert done.rc == 2, done.output
    assert "all 4 hosts measure at the same time, and Ansible reaches 2 at once -> --forks 4" in done.words
    assert not REPORT.exists()


#: In place of nccl-tests: no GPU can run the real ones here. It is fetched, pinned, built by make and judged as they are.
SOURCES = """
apt-get install --quiet --yes --no-install-recommends git make g++ >/dev/null
rm -rf /srv/nccl-tests /opt/vllm/tools/nccl-tests
git init --quiet --initial-branch main /srv/nccl-tests/src
cd /srv/nccl-tests/src
mkdir src
cat > src/Makefile <<'MAKE'
$(BUILDDIR)/all_reduce_perf:
\tmkdir -p $(BUILDDIR)
\tprintf '#!/bin/sh\\necho "  $$2 1048576 float sum -1 31418 273.41 478.47 0 31502 272.68 477.19 0"\\n' > $@
\tchmod 0755 $@
MAKE
git add . && git -c user.name=nobody -c user.email=nobody@nccl.test commit --quiet --message one && git tag v1
git rev-parse HEAD
"""


def test_nccl_tests_are_built_at_their_commit_and_judged_by_the_floor() -> None:
    commit = shell("h20-71", SOURCES).splitlines()[-1]

    def tests(**variables: t.Any) -> Run:
        named = {
            "nccl_tests_repository": "file:///srv/nccl-tests/src",
            "nccl_tests_version": "v1",
            "nccl_tests_commit": commit,
        }
        return adhoc("h20-71", "nccl_tests", **(named | variables))

    refused = tests(nccl_tests_commit="0" * 40)
    assert refused.rc == 2, refused.output
    assert f"v1 of file:///srv/nccl-tests/src is {commit}, not {'0' * 40}" in refused.words
    unpinned = tests(nccl_tests_commit="")
    assert "a tag can be moved -> set nccl_tests_version to the tag and nccl_tests_commit" in unpinned.words
    built = tests()
    assert built.rc == 0, built.output
    assert "all_reduce_perf reaches 477.19 GB/s, the floor is 0.01 GB/s" in built.words
    slow_one = tests(nccl_allreduce_floor_gb_s=480)
    assert slow_one.rc == 2, slow_one.output
    assert "all_reduce_perf reaches 477.19 GB/s with 0 wrong numbers, the floor is 480.0 GB/s" in slow_one.words
