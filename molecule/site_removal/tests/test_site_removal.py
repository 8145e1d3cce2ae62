# SPDX-License-Identifier: Apache-2.0
"""What is left after removal: the host as it was before the first stage, the weights, and what an operator has brought since."""

from __future__ import annotations

import json
import re
import typing as t

import pytest
from conftest import UNIT, Api, backend, play, shell

if t.TYPE_CHECKING:
    from testinfra.host import Host

REMOVED, SERVING = "h20-12", "h20-11"
testinfra_hosts = [backend(REMOVED)]

Snapshot = dict[str, dict[str, str]]

#: What differs all the same, and why: a file by its path, anything else by its line.
REASONS = {
    "files": (
        r"/data/models(/.*)?",  # the weights
        r"/var/log/.*",  # logs and the journal
        r"/etc/(passwd|group|shadow|gshadow|subuid|subgid)-",  # what passwd and the like keep of the version before
        r"/var/lib/dpkg/(status|available|diversions|statoverride)-old",  # what dpkg keeps of the version before
        r"/var/lib/apt/lists/.*",  # apt's lists: the next `apt-get update` drops those of a repository that is gone
        r"/var/cache/apt/(src)?pkgcache\.bin",  # made anew of the lists
        r"/(etc/ld\.so\.cache|var/cache/ldconfig/aux-cache)",  # made anew of the libraries that are there
        r"/(root|home/ops)/\.ansible(/tmp)?",  # Ansible's own folders
        r"/root/(snapshot\.py|before\.json)",  # this test's
        r"/var/lib/systemd/(random-seed|timers/.*|timesync/.*)",  # of the host's own life
        r"/var/lib/systemd/deb-systemd-helper-enabled/[^/]*\.wants",  # folders that Debian's helper makes for a package's unit, and leaves when that is purged
    ),
    "listeners": (
        r"(tcp|udp) .* 127\.0\.0\.11:\d+ .*",
    ),  # the container engine's resolver, whose ports differ after each start
}
#: What the operator has brought, with what it needs; dpkg's files of both, and its marks.
THEIRS = {
    "packages": (r"(numactl|libnuma1):amd64 .* ii",),
    "manual": ("numactl",),
    "files": (
        r"/var/lib/dpkg/(info/(numactl|libnuma1(:amd64)?)\..*|status)",
        r"/var/cache/apt/archives/(numactl|libnuma1)_.*\.deb",
        "/var/lib/apt/extended_states",
    ),
}


def known(kind: str, name: str) -> bool:
    """Whether there is a reason for a difference."""
    return any(re.fullmatch(pattern, name) for pattern in (*REASONS.get(kind, ()), *THEIRS.get(kind, ())))


@pytest.fixture(scope="module")
def before() -> Snapshot:
    snapshot: Snapshot = json.loads(shell(REMOVED, "cat /root/before.json"))
    return snapshot


@pytest.fixture(scope="module")
def after() -> Snapshot:
    snapshot: Snapshot = json.loads(shell(REMOVED, "/usr/bin/python3 /root/snapshot.py"))
    return snapshot


def test_host_is_what_it_was_before_the_first_stage(before: Snapshot, after: Snapshot) -> None:
    assert before.keys() == after.keys()
    differences = [
        f"{kind} {name}: {before[kind].get(name, 'was not there')} -> {after[kind].get(name, 'is gone')}"
        for kind in before
        for name in sorted(before[kind].keys() | after[kind].keys())
        if before[kind].get(name) != after[kind].get(name) and not known(kind, name)
    ]
    assert differences == []


def test_snapshot_sees_what_a_stage_brings(before: Snapshot, after: Snapshot) -> None:
    """On the host that still serves, the same look finds what the removal has taken away here."""
    serving: Snapshot = json.loads(shell(SERVING, "/usr/bin/python3 /root/snapshot.py"))
    for kind, name in (
        ("files", "/etc/systemd/system/vllm@.service"),
        ("files", "/etc/sysctl.d/90-h20-fleet.conf"),
        ("files", "/etc/apt/preferences.d/h20-fleet.pref"),
        ("files", "/usr/local/share/ca-certificates/h20-fleet.crt"),
        ("held", "nvidia-open"),
        ("units", "nvidia-fabricmanager.service enabled  enabled"),
    ):
        seen = {re.sub(r"\s+", " ", line) for line in serving[kind]}
        assert re.sub(r"\s+", " ", name) in seen, name
    assert any(line.startswith("vllm:") for line in serving["users"])
    assert any(line.startswith("nvidia-open:") for line in serving["packages"])
    assert len(before["files"]) > 1000
    assert len(after["packages"]) > 100


def test_operators_package_stays_with_what_it_needs(host: Host) -> None:
    assert host.package("numactl").is_installed
    assert host.package("libnuma1").is_installed
    assert host.check_output("dpkg --audit") == ""
    assert host.check_output("apt-get check --quiet=2") == ""


def test_nothing_serves_and_the_host_is_healthy(host: Host) -> None:
    assert host.run(f"systemctl is-active {UNIT}").stdout.strip() == "inactive"
    assert host.check_output("systemctl is-system-running") == "running"
    assert not host.file("/usr/bin/nvidia-smi").exists


def test_weights_stay_until_they_are_asked_for(host: Host) -> None:
    weights = "/data/models/h20-fleet/tiny-deepseek-v3/current/config.json"
    assert host.file(weights).exists
    assert host.file(weights).user == "root"
    arguments = ("--limit", REMOVED, "--tags", "model", "--extra-vars", "fleet_remove_models=true")
    run = play("remove", *arguments)
    assert run.rc == 0, run.output
    assert shell(REMOVED, "ls --almost-all /data/models") == ""
    again = play("remove", *arguments)
    assert re.search(r"changed=0 .*failed=0", again.output), again.output


@pytest.fixture
def training() -> t.Iterator[None]:
    """Somebody else's work on a GPU of the host that serves."""
    shell(SERVING, "touch /dev/nvidia0 && systemd-run --unit=train sh -c 'exec 7</dev/nvidia0; exec sleep 600'")
    yield
    shell(SERVING, "systemctl stop train.service; rm /dev/nvidia0")


@pytest.mark.usefixtures("training")
def test_driver_that_somebody_uses_is_not_torn_away() -> None:
    run = play("remove", "--limit", SERVING)
    assert run.rc == 2, run.output
    assert re.search(r"the GPUs are in use by sleep / pid \d+ / train\.service -> stop that first", run.words), (
        run.output
    )
    assert "changed=0" in run.words
    assert Api(SERVING).chat()
