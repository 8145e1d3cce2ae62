# SPDX-License-Identifier: Apache-2.0
"""Fleets: their files, and the addresses that follow from them."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from testbed import SetupError, fleet, hardware
from unit.testbed.sample import WHERE


@pytest.mark.parametrize("name", fleet.names())
def test_fleets_of_the_test_bed_are_complete(name: str) -> None:
    for host in fleet.load(name).hosts:
        hardware.load(host.hardware)


def test_host_names_are_unique_over_all_fleets() -> None:
    hosts = [host.name for name in fleet.names() for host in fleet.load(name).hosts]
    assert len(hosts) == len(set(hosts))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hosts:",
        "hosts: {a: {}}",
        "hosts: {a: {hardware: x, memory: 3}}",
        "hosts: [a]",
        "{",
        "hosts: {a: {hardware: x}}\nshares: [/opt/vllm]",
        "hosts: {a: {hardware: x}}\nshared: /opt/vllm",
        "hosts: {a: {hardware: x}}\nshared: [opt/vllm]",
    ],
)
def test_a_file_that_is_no_fleet_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match=r"fleets/x\.yml is not a fleet"):
        fleet.parse("x", text)


def test_an_unknown_fleet_is_answered_with_the_known_ones() -> None:
    assert {"demo", "molecule"} <= set(fleet.names())
    with pytest.raises(SetupError, match=rf"no fleet 'dmo'; there are: {', '.join(sorted(fleet.names()))}\."):
        fleet.load("dmo")


def test_isolated_hosts_have_addresses_and_a_network_of_their_own() -> None:
    hosts = "hosts: {a: {hardware: x}, b: {hardware: x, isolated: true}}"
    parsed = fleet.parse("gap", hosts)
    where = fleet.addresses(parsed, IPv4Network("172.30.0.0/16"), IPv4Network("172.31.0.0/16"))
    assert (where["gap-hub"], where["a"], where["b"]) == ("172.30.0.2", "172.30.0.11", "172.31.0.12")
    assert [parsed.network_of(name) for name in ("gap-hub", "a", "b")] == ["h20-gap", "h20-gap", "h20-gap-isolated"]
    assert (parsed.has_isolated, fleet.load("demo").has_isolated) == (True, False)


def test_addresses_are_fixed_by_the_order_of_the_file() -> None:
    assert WHERE == {
        "demo-hub": "172.30.0.2",
        "demo-mirror": "172.30.0.3",
        "h20-01": "172.30.0.11",
        "h20-02": "172.30.0.12",
    }


def test_folders_that_hosts_share_are_volumes_of_the_fleet() -> None:
    parsed = fleet.parse("wide", "hosts: {a: {hardware: x}}\nshared: [/opt/vllm, /data]")
    assert parsed.volumes == {"h20-wide-opt-vllm": "/opt/vllm", "h20-wide-data": "/data"}
    assert fleet.load("demo").volumes == {}
