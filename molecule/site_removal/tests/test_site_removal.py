# SPDX-License-Identifier: Apache-2.0
"""What is left after removal: the driver and the weights, and nothing else that the collection brought."""

from __future__ import annotations

import typing as t

from conftest import UNIT, backend

if t.TYPE_CHECKING:
    from testinfra.host import Host

testinfra_hosts = [backend("h20-12")]


def test_nothing_serves_and_the_host_is_healthy(host: Host) -> None:
    assert not host.file(f"/etc/systemd/system/{UNIT.replace('tiny-deepseek', '')}").exists
    assert host.run(f"systemctl is-active {UNIT}").stdout.strip() == "inactive"
    assert host.check_output("systemctl is-system-running") == "running"
    assert not host.user("vllm").exists


def test_no_file_of_the_collection_is_left(host: Host) -> None:
    marked = host.run("grep --recursive --files-with-matches 'Managed by h20.fleet' /etc /usr/local /usr/lib/systemd")
    assert marked.stdout == ""
    for path in (
        "/opt/vllm",
        "/etc/vllm",
        "/etc/h20-fleet",
        "/usr/local/lib/h20-fleet",
        "/var/lib/vllm",
        "/var/lib/model-fetch",
        "/var/lib/h20-fleet",
        "/etc/nccl.conf",
    ):
        assert not host.file(path).exists, path


def test_nothing_is_held_and_the_driver_still_answers(host: Host) -> None:
    assert host.check_output("apt-mark showhold") == ""
    assert len(host.check_output("nvidia-smi -L").splitlines()) == 8


def test_weights_stay(host: Host) -> None:
    assert host.file("/data/models/h20-fleet/tiny-deepseek-v3/current/config.json").exists
