# SPDX-License-Identifier: Apache-2.0
"""nccl_differences: in what hosts of one run differ from most of them, and the traits that are compared."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest

PLUGINS = "ansible_collections.h20.fleet.plugins"
nccl_differences: Any = importlib.import_module(f"{PLUGINS}.filter.nccl_differences")
differences: Any = nccl_differences.FilterModule().filters()["nccl_differences"]

PORT = {
    "device": "mlx5_0",
    "port": 1,
    "link_layer": "Ethernet",
    "state": "ACTIVE",
    "physical_state": "LinkUp",
    "rate_gbps": 400.0,
    "numa_node": 0,
    "netdev": "ens1",
    "address": "0000:1a:00.0",
    "firmware": "28.43.2566",
    "mtu": 9000,
    "traffic_class": 106,
}
GPU: dict[str, Any] = {
    "pci_gpus": [{"device": "232c", "numa_node": node} for node in (0, 0, 1, 1)],
    "smi": {"driver_version": "580.173.02", "gpus": [{"product": "NVIDIA H20-3e"}] * 4},
    "module": {"open": True},
    "kernel": {"release": "6.8.0-60-generic"},
    "topology": [["GPU0", "GPU1", "NV18"], ["GPU0", "GPU2", "NV18"]],
    "infiniband": [PORT],
}
GID = {"device": "mlx5_0", "port": 1, "index": 3, "type": "RoCE v2", "family": "ipv4"}
NETWORK: dict[str, Any] = {
    "default_interface": "bond0",
    "mtus": {"bond0": 1500, "ens1": 9000},
    "gids": [GID | {"index": 1, "type": "IB/RoCE v1"}, GID, GID | {"index": 7}],
    "peermem": False,
}


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy in which the value at a dotted path is another one."""
    result: Any = copy.deepcopy(document)
    *way, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    place = result
    for step in way:
        place = place[step]
    place[last] = value
    return dict(result)


def networks(**others: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {host: others.get(f"h{host[-1]}", NETWORK) for host in fleet()}


def fleet(count: int = 4, **others: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"h20-0{number}": others.get(f"h{number}", GPU) for number in range(1, count + 1)}


def test_hosts_that_are_the_same_are_not_named() -> None:
    assert differences(fleet(), networks()) == {}
    assert differences({"h20-01": GPU}) == {}
    assert differences({}) == {}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("infiniband.0.state", "DOWN", "state of mlx5_0:1 is DOWN (LinkUp), while 3 of 4 hosts have ACTIVE (LinkUp)"),
        (
            "infiniband.0.rate_gbps",
            200.0,
            "rate of mlx5_0:1 is Ethernet 200 Gbit/s, while 3 of 4 hosts have Ethernet 400 Gbit/s",
        ),
        ("infiniband.0.mtu", 1500, "MTU of mlx5_0:1 is 1500, while 3 of 4 hosts have 9000"),
        ("infiniband.0.traffic_class", None, "traffic class of mlx5_0:1 is none, while 3 of 4 hosts have 106"),
        ("infiniband.0.firmware", "28.39.1002", "firmware of mlx5_0 is 28.39.1002, while 3 of 4 hosts have 28.43.2566"),
        ("infiniband.0.numa_node", 1, "NUMA node of mlx5_0:1 is 1, while 3 of 4 hosts have 0"),
        ("smi.driver_version", "595.71.05", "driver is 595.71.05, while 3 of 4 hosts have 580.173.02"),
        ("module.open", False, "nvidia module is proprietary, while 3 of 4 hosts have open"),
        ("topology.1.2", "PHB", "GPU0-GPU2 is PHB, while 3 of 4 hosts have NV18"),
        ("pci_gpus.3.numa_node", 0, "GPUs by NUMA node is 0:3 1:1, while 3 of 4 hosts have 0:2 1:2"),
    ],
)
def test_the_one_host_that_differs_is_named_with_what_differs(path: str, value: Any, said: str) -> None:
    told = differences(fleet(h3=changed(GPU, path, value)))
    assert set(told) == {"h20-03"}
    assert told["h20-03"] == (
        f"h20-03 differs from the other hosts: {said} -> make the hosts the same, or serve from them apart"
    )


def test_an_adapter_that_is_missing_is_named_with_all_that_is_missing_of_it() -> None:
    told = differences(fleet(h2=changed(GPU, "infiniband", [])))["h20-02"]
    assert "state of mlx5_0:1 is none, while 3 of 4 hosts have ACTIVE (LinkUp)" in told


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("gids", [GID | {"index": 5}], "GID index of mlx5_0:1 (RoCE v2, ipv4) is 5, while 3 of 4 hosts have 3"),
        ("gids", [], "GID index of mlx5_0:1 (RoCE v2, ipv4) is none, while 3 of 4 hosts have 3"),
        ("mtus.bond0", 9000, "MTU of the default route is 9000, while 3 of 4 hosts have 1500"),
    ],
)
def test_the_network_of_a_replica_is_compared(path: str, value: Any, said: str) -> None:
    told = differences(fleet(), networks(h4=changed(NETWORK, path, value)))
    assert set(told) == {"h20-04"}
    assert said in told["h20-04"]
    # Where it was not asked for, a skipped task says so.
    assert differences(fleet(), {host: {"skipped": True, "changed": False} for host in fleet()}) == {}


def test_names_of_interfaces_may_differ() -> None:
    other = changed(NETWORK, "mtus", {"eth0": 1500}) | {"default_interface": "eth0"}
    assert differences(fleet(), networks(h1=other)) == {}


def test_variables_of_the_site_are_compared_but_for_names_and_logging() -> None:
    own = {"NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "=eth0", "NCCL_IB_HCA": "=mlx5_4"}
    assert differences(fleet(), {}, {"h20-01": own}) == {}
    told = differences(fleet(), {}, {host: {"NCCL_IB_TC": 160 if host == "h20-02" else 106} for host in fleet()})
    assert set(told) == {"h20-02"}
    assert "NCCL_IB_TC is 160, while 3 of 4 hosts have 106" in told["h20-02"]


def test_without_a_majority_every_host_is_named_with_its_own() -> None:
    told = differences(fleet(2, h2=changed(GPU, "smi.driver_version", "595.71.05")))
    assert set(told) == {"h20-01", "h20-02"}
    assert "driver is 595.71.05, while the hosts have 580.173.02 (1), 595.71.05 (1)" in told["h20-02"]


def test_a_host_that_differs_in_everything_says_what_can_be_read() -> None:
    other = GPU | {"pci_gpus": [], "smi": None, "topology": [], "infiniband": [], "module": {"open": None}}
    told = differences(fleet(h1=other))["h20-01"]
    assert "GPUs is 0 x none" in told
    assert told.count(", while ") == 6
    assert "and 6 more ->" in told


def test_hosts_that_serve_alone_are_warned_of_and_compared_among_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(nccl_differences.display, "warning", shown.append)
    others = fleet(h3=changed(GPU, "module.open", False))
    told = differences(others)
    assert shown == list(told.values()) != []
    shown.clear()
    assert set(differences(others, networks())) == {"h20-03"}
    assert shown == [], "of a replica it is a refusal"
    # One host over several has nobody to be compared with.
    assert differences(others, {"h20-03": NETWORK}) == {}
