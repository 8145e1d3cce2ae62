# SPDX-License-Identifier: Apache-2.0
"""nccl_plan: the variables of a host by its shape, what is refused and what is warned of; the check of a topology file."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

FILTERS = "ansible_collections.h20.fleet.plugins.filter"
nccl_plan: Any = importlib.import_module(f"{FILTERS}.nccl_plan")
_nccl: Any = importlib.import_module("ansible_collections.h20.fleet.plugins.module_utils._nccl")
topology_error: Any = (
    importlib.import_module(f"{FILTERS}.nccl_topology_error").FilterModule().filters()["nccl_topology_error"]
)

CHOICES = {
    "nodes": "single",
    "debug": "WARN",
    "ib_disable": False,
    "net_gdr_level": "auto",
    "p2p_level": "auto",
    "topo_file": "",
    "socket_interfaces": [],
    "hcas": [],
    "roce_family": "ipv4",
    "peermem": False,
    "settings": {},
}
NETWORK = {"interfaces": ["bond0", "eno1", "eno10"], "default_interface": "bond0", "gids": [], "peermem": False}


def port(device: str, rate: float = 400.0, numa: int | None = 0, **fields: Any) -> dict[str, Any]:
    described = {"device": device, "port": 1, "rate_gbps": rate, "numa_node": numa, "link_layer": "InfiniBand"}
    state = {"state": "ACTIVE", "physical_state": "LinkUp", "netdev": None, "address": None}
    return described | state | fields


def gid(device: str, index: int, kind: str = "RoCE v2", family: str = "ipv4") -> dict[str, Any]:
    return {"device": device, "port": 1, "index": index, "type": kind, "family": family, "gid": "", "netdev": None}


def plan(*ports: dict[str, Any], network: dict[str, Any] | None = None, nvswitches: int = 4, **choices: Any) -> Any:
    gpu = {"infiniband": list(ports), "pci_nvswitches": [{}] * nvswitches, "module": {"open": True}}
    network = NETWORK | (network or {}) if choices.get("nodes") == "multi" else {}
    return _nccl.plan(gpu, CHOICES | choices, network)


def test_one_node_is_told_nothing_but_the_log_level() -> None:
    assert plan(port("mlx5_0")) == ({"NCCL_DEBUG": "WARN"}, [], [], "")


@pytest.mark.parametrize(
    ("choices", "settings"),
    [
        ({"debug": "VERSION"}, {"NCCL_DEBUG": "VERSION"}),
        ({"ib_disable": True}, {"NCCL_IB_DISABLE": "1"}),
        ({"net_gdr_level": "PHB"}, {"NCCL_NET_GDR_LEVEL": "PHB"}),
        ({"p2p_level": "NVL"}, {"NCCL_P2P_LEVEL": "NVL"}),
        ({"topo_file": "/etc/nccl-topology.xml"}, {"NCCL_TOPO_FILE": "/etc/nccl-topology.xml"}),
        ({"socket_interfaces": ["eth0", "eth1"]}, {"NCCL_SOCKET_IFNAME": "=eth0,eth1"}),
        ({"settings": {"NCCL_NVLS_ENABLE": False}}, {"NCCL_NVLS_ENABLE": "0"}),
        ({"settings": {"NCCL_IB_TC": 106}}, {"NCCL_IB_TC": "106"}),
        ({"p2p_level": "NVL", "settings": {"NCCL_P2P_LEVEL": "SYS"}}, {"NCCL_P2P_LEVEL": "SYS"}),
    ],
)
def test_each_variable_is_an_explicit_choice(choices: dict[str, Any], settings: dict[str, str]) -> None:
    planned = plan(**choices)
    assert planned.settings == {"NCCL_DEBUG": "WARN"} | settings
    assert planned.refusals == []


@pytest.mark.parametrize(
    ("choices", "warning"),
    [
        ({"debug": "INFO"}, "NCCL_DEBUG=INFO logs every communicator"),
        ({"settings": {"NCCL_DEBUG": "TRACE"}}, "NCCL_DEBUG=TRACE logs every communicator"),
        ({"p2p_level": "LOC"}, "NCCL_P2P_LEVEL=LOC takes the NVLinks from NCCL"),
        ({"p2p_level": "NVL", "nvswitches": 0}, "forbids PCIe between GPUs that no NVLink joins"),
        ({"net_gdr_level": "SYS"}, "NCCL_NET_GDR_LEVEL=SYS overrules the distance"),
        ({"net_gdr_level": "LOC"}, "NCCL_NET_GDR_LEVEL=LOC turns GPUDirect RDMA off"),
        ({"topo_file": "/x"}, "NCCL_TOPO_FILE replaces what NCCL reads"),
        (
            {"settings": {"NCCL_SOCKET_IFNAME": "eth0"}},
            "NCCL_SOCKET_IFNAME=eth0 matches every interface that begins so",
        ),
        ({"settings": {"NCCL_QUANTUM_FLUX": 1}}, "NCCL_QUANTUM_FLUX is not among the variables of NCCL"),
    ],
)
def test_what_hurts_is_warned_of_with_a_remedy(choices: dict[str, Any], warning: str) -> None:
    planned = plan(**choices)
    (said,) = planned.warnings
    assert warning in said
    assert " -> " in said
    assert planned.refusals == []


@pytest.mark.parametrize(
    ("nodes", "consequence"), [("single", "on one node it changes nothing"), ("multi", "over TCP")]
)
def test_disabled_infiniband_is_warned_of_where_ports_are_active(nodes: str, consequence: str) -> None:
    (said,) = plan(port("mlx5_0"), nodes=nodes, ib_disable=True).warnings
    assert "leaves the active ports mlx5_0:1 unused" in said
    assert consequence in said
    assert plan(port("mlx5_0", state="DOWN"), nodes=nodes, ib_disable=True).warnings == []


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        (
            {"NCCL_SOKET_IFNAME": "=eth0"},
            "NCCL_SOKET_IFNAME is not known to NCCL, which would pass over it without a word -> did you mean NCCL_SOCKET_IFNAME?",
        ),
        ({"NCCL_P2P_LEVL": "NVL"}, "did you mean NCCL_P2P_LEVEL?"),
        ({"nccl_debug": "WARN"}, "nccl_debug is no variable of NCCL -> did you mean NCCL_DEBUG?"),
        ({"IB_DISABLE": 1}, "did you mean NCCL_IB_DISABLE?"),
        ({"OMP_NUM_THREADS": 1}, "OMP_NUM_THREADS is no variable of NCCL -> /etc/nccl.conf is for NCCL alone"),
        (
            {"NCCL_NET_GDR_LEVEL": 5},
            "NCCL_NET_GDR_LEVEL is 5 -> write LOC, PIX, PXB, PHB or SYS; numbers are the old form, of which 5 means SYS",
        ),
        ({"NCCL_DEBUG": "info"}, "NCCL_DEBUG is info -> write VERSION, WARN, INFO or TRACE"),
        ({"NCCL_IB_DISABLE": "yes"}, "NCCL_IB_DISABLE is yes -> write 0 or 1"),
        ({"NCCL_ALGO": None}, "NCCL_ALGO has no value on one line"),
        ({"NCCL_ALGO": "Ring\nNCCL_DEBUG=INFO"}, "NCCL_ALGO has no value on one line"),
    ],
)
def test_what_nccl_would_misread_is_refused_with_a_hint(settings: dict[str, Any], refusal: str) -> None:
    (said,) = plan(settings=settings).refusals
    assert refusal in said


def test_every_variable_that_the_role_writes_is_known() -> None:
    planned = plan(port("mlx5_0"), nodes="multi", ib_disable=True, net_gdr_level="SYS", p2p_level="SYS", topo_file="/x")
    roce = {"NCCL_IB_GID_INDEX", "NCCL_IB_ROCE_VERSION_NUM", "NCCL_IB_ADDR_FAMILY", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"}
    assert {name.removeprefix("NCCL_") for name in {*planned.settings, *roce, *_nccl.VALUES}} <= _nccl.VARIABLES


@pytest.mark.parametrize(
    ("ports", "hca"),
    [
        # By NUMA node, then by number, and mlx5_10 behind mlx5_2.
        ([port("mlx5_10", numa=1), port("mlx5_2", numa=1), port("mlx5_0", numa=0)], "=mlx5_0:1,mlx5_2:1,mlx5_10:1"),
        # The storage adapter is slower.
        ([port("mlx5_0"), port("mlx5_1", rate=200.0)], "=mlx5_0:1"),
        # A port that is not up carries nothing.
        ([port("mlx5_0"), port("mlx5_1", state="INIT"), port("mlx5_2", physical_state="Polling")], "=mlx5_0:1"),
        # Of two kinds at the same rate one is taken, since NCCL cannot mix them.
        ([port("mlx5_0", link_layer="Ethernet"), port("mlx5_1")], "=mlx5_1:1"),
        ([port("mlx5_0", port=2), port("mlx5_0", port=1)], "=mlx5_0:1,mlx5_0:2"),
        ([port("mlx5_1", numa=None), port("mlx5_0", numa=1)], "=mlx5_0:1,mlx5_1:1"),
    ],
)
def test_several_nodes_send_over_the_fastest_active_ports(ports: list[dict[str, Any]], hca: str) -> None:
    planned = plan(*ports, nodes="multi")
    assert planned.settings["NCCL_IB_HCA"] == hca
    assert planned.settings["NCCL_SOCKET_IFNAME"] == "=bond0"
    assert planned.refusals == []


def test_a_site_names_adapters_itself() -> None:
    ports = [port("mlx5_0"), port("mlx5_1", rate=200.0), port("mlx5_2", state="DOWN")]
    assert plan(*ports, nodes="multi", hcas=["mlx5_1", "mlx5_0:1"]).settings["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_1:1"
    (said,) = plan(*ports, nodes="multi", hcas=["mlx5_0", "mlx5_2", "mlx5_9:1"]).refusals
    assert "nccl_hcas names mlx5_2, mlx5_9:1 without an active port" in said


def test_a_port_that_is_down_is_shown() -> None:
    (said,) = plan(port("mlx5_0"), port("mlx5_1", state="DOWN", physical_state="Polling"), nodes="multi").warnings
    assert "mlx5_1:1 is DOWN (Polling), while 1 ports carry NCCL" in said


def test_without_adapters_nccl_goes_over_tcp_and_that_is_said() -> None:
    planned = plan(nodes="multi")
    assert planned.settings == {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "=bond0"}
    (said,) = planned.warnings
    assert "no InfiniBand or RoCE port is active" in said


def test_interface_is_the_sites_or_that_of_the_default_route() -> None:
    assert plan(nodes="multi", socket_interfaces=["eno1"]).settings["NCCL_SOCKET_IFNAME"] == "=eno1"
    (said,) = plan(nodes="multi", socket_interfaces=["eth0"]).refusals
    assert "nccl_socket_interfaces names eth0, which this host has not; it has bond0, eno1, eno10" in said
    (said,) = plan(nodes="multi", network={"default_interface": ""}).refusals
    assert "no default route" in said
    assert plan(nodes="multi", network={"default_interface": ""}, socket_interfaces=["eno1"]).refusals == []


@pytest.mark.parametrize(
    ("gids", "family", "settings"),
    [
        (
            [
                gid("a", 0, "IB/RoCE v1"),
                gid("a", 1, family="link"),
                gid("a", 3),
                gid("b", 2, "IB/RoCE v1"),
                gid("b", 3),
            ],
            "ipv4",
            {"NCCL_IB_GID_INDEX": "3"},
        ),
        ([gid("a", 3), gid("a", 5, family="ipv6"), gid("b", 5, family="ipv6")], "ipv6", {"NCCL_IB_GID_INDEX": "5"}),
        # No one index fits both, so NCCL has to look for itself.
        ([gid("a", 3), gid("b", 5)], "ipv4", {"NCCL_IB_ROCE_VERSION_NUM": "2", "NCCL_IB_ADDR_FAMILY": "AF_INET"}),
    ],
)
def test_roce_takes_version_2_in_the_right_family(
    gids: list[dict[str, Any]], family: str, settings: dict[str, str]
) -> None:
    ports = [port("a", link_layer="Ethernet"), port("b", link_layer="Ethernet")]
    planned = plan(*ports, nodes="multi", network={"gids": gids}, roce_family=family)
    assert planned.refusals == []
    assert {
        name: value for name, value in planned.settings.items() if "ROCE" in name or "GID" in name or "ADDR" in name
    } == settings


def test_roce_without_an_address_of_the_family_is_refused() -> None:
    ports = [port("a", link_layer="Ethernet", netdev="ens1"), port("b", link_layer="Ethernet", netdev="ens2")]
    (said,) = plan(*ports, nodes="multi", network={"gids": [gid("a", 3), gid("b", 1, "IB/RoCE v1")]}).refusals
    assert "b:1 has no RoCE v2 address of family ipv4 -> give its interface ens2 an address" in said


@pytest.mark.parametrize(
    ("module_open", "peermem", "said"), [(True, False, 0), (False, True, 0), (False, False, 1), (None, False, 1)]
)
def test_gpudirect_needs_dmabuf_or_peermem(module_open: bool | None, peermem: bool, said: int) -> None:
    gpu = {"infiniband": [port("mlx5_0")], "pci_nvswitches": [{}], "module": {"open": module_open}}
    planned = _nccl.plan(gpu, CHOICES | {"nodes": "multi"}, NETWORK | {"peermem": peermem})
    assert len(planned.warnings) == said


@pytest.mark.parametrize(
    ("module_open", "kernel", "peermem", "wanted", "way"),
    [
        (True, "6.8.0-60-generic", False, False, "DMA-BUF"),
        (True, "5.4.0-200-generic", False, False, "none"),
        (True, "5.4.0-200-generic", True, False, "nvidia_peermem"),
        (False, "6.8.0-60-generic", False, True, "nvidia_peermem"),
        (True, "6.8.0-60-generic", False, True, "DMA-BUF"),
    ],
)
def test_the_way_to_gpu_memory_is_told(module_open: bool, kernel: str, peermem: bool, wanted: bool, way: str) -> None:
    gpu = {"infiniband": [port("mlx5_0")], "pci_nvswitches": [{}], "module": {"open": module_open}}
    network = NETWORK | {"peermem": peermem}
    planned = _nccl.plan(
        gpu | {"kernel": {"release": kernel}}, CHOICES | {"nodes": "multi", "peermem": wanted}, network
    )
    assert planned.gpudirect == way
    assert any("nccl_peermem: true" in said for said in planned.warnings) == (way == "none")


def test_adapters_that_do_not_stand_beside_gpus_are_left_out_and_shown() -> None:
    gpu = {
        "pci_gpus": [{"numa_node": node} for node in (0, 0, 1, 1)],
        "pci_nvswitches": [{}],
        "module": {"open": True},
    }

    def planned(*nodes: int) -> Any:
        ports = [port(f"mlx5_{number}", numa=node) for number, node in enumerate(nodes)]
        return _nccl.plan(gpu | {"infiniband": ports}, CHOICES | {"nodes": "multi"}, NETWORK)

    assert planned(0, 1) == planned(0, 1)._replace(warnings=[])
    # A NUMA node without GPUs: far from all of them.
    assert planned(0, 1, 3).settings["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_1:1"
    assert planned(3).settings["NCCL_IB_HCA"] == "=mlx5_0:1"
    (said,) = planned(0, 0).warnings
    assert "NUMA node 0 has 2 GPUs and 2 adapters; NUMA node 1 has 2 GPUs and 0 adapters" in said
    assert "NUMA node 3 has 0 GPUs and 1 adapters" in planned(3).warnings[0]


@pytest.mark.parametrize(
    ("classes", "settings", "refusal"),
    [
        ((106, 106), {"NCCL_IB_TC": "106"}, ""),
        ((None, None), {}, ""),
        ((106, 160), {}, "the ports send with different traffic classes (a:1 106, b:1 160) -> set one"),
        ((None, 106), {}, "(a:1 none, b:1 106)"),
    ],
)
def test_the_traffic_class_of_the_host_is_told_to_nccl(
    classes: tuple[int | None, int | None], settings: dict[str, str], refusal: str
) -> None:
    ports = [port(name, link_layer="Ethernet", traffic_class=found) for name, found in zip("ab", classes, strict=True)]
    planned = plan(*ports, nodes="multi", network={"gids": [gid("a", 3), gid("b", 3)]})
    assert {name: value for name, value in planned.settings.items() if name == "NCCL_IB_TC"} == settings
    assert [refusal in said for said in planned.refusals] == ([True] if refusal else [])


def test_an_mtu_that_cuts_roce_short_is_shown() -> None:
    ports = [port("a", link_layer="Ethernet", netdev="ens1", mtu=1500), port("b", link_layer="Ethernet", mtu=9000)]
    (said,) = plan(*ports, nodes="multi", network={"gids": [gid("a", 3), gid("b", 3)]}).warnings
    assert "the MTU of a:1 (ens1 1500) is below 4200" in said


def test_filter_shows_its_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(nccl_plan.display, "warning", shown.append)
    gpu = {"infiniband": [], "pci_nvswitches": [{}], "module": {"open": True}}
    planned = nccl_plan.FilterModule().filters()["nccl_plan"](gpu, CHOICES | {"debug": "INFO"})
    assert planned["settings"] == {"NCCL_DEBUG": "INFO"}
    assert shown == planned["warnings"] != []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('<system version="1"><cpu numaid="0"/></system>', ""),
        ('<?xml version="1.0"?>\n<!-- of a VM -->\n<system version="2"></system>\n', ""),
        ("<graphs/>", "has the root element <graphs>, not <system>"),
        ("<system><cpu></system>", "is no XML: mismatched tag"),
        ("", "is no XML: no element found"),
    ],
)
def test_topology_files_are_checked(text: str, error: str) -> None:
    said = topology_error(text)
    assert said.startswith(error)
    assert bool(said) is bool(error)
