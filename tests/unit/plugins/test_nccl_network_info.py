# SPDX-License-Identifier: Apache-2.0
"""nccl_network_info on folders that look like /sys and /proc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit.plugins.support import run_module

ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
EMPTY = ":".join(["0000"] * 8)


def route(
    interface: str, metric: int, *, destination: str = "00000000", mask: str = "00000000", flags: str = "0003"
) -> str:
    return f"{interface}\t{destination}\t0101A8C0\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


def route6(interface: str, metric: str, flags: str = "00000003", length: str = "00") -> str:
    zero = "0" * 32
    return f"{zero} {length} {zero} 00 fe800000000000000000000000000001 {metric} 00000001 00000000 {flags} {interface:>8}\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def gids(device: str, port: int, entries: dict[int, tuple[str, str, str]]) -> dict[str, str]:
    folder = f"sys/class/infiniband/{device}/ports/{port}"
    files: dict[str, str] = {}
    for index, (gid, kind, netdev) in entries.items():
        files |= {f"{folder}/gids/{index}": f"{gid}\n"}
        if kind:
            files |= {
                f"{folder}/gid_attrs/types/{index}": f"{kind}\n",
                f"{folder}/gid_attrs/ndevs/{index}": f"{netdev}\n",
            }
    return files


@pytest.mark.parametrize(
    ("route4", "route_6", "wanted"),
    [
        (ROUTES + route("eno2", 200) + route("eno1", 100), "", "eno1"),
        (ROUTES + route("eno1", 0, destination="0001A8C0", mask="00FFFFFF") + route("eno2", 100), "", "eno2"),
        (ROUTES + route("eno1", 0, flags="0002") + route("eno2", 100), "", "eno2"),
        (ROUTES + route("eno1", 900), route6("eno2", "00000001"), "eno1"),
        (ROUTES, route6("eno2", "00000400") + route6("eno3", "00000064"), "eno3"),
        (ROUTES, route6("lo", "ffffffff", "00200200"), ""),
        ("", "", ""),
    ],
)
def test_interface_of_the_default_route(tmp_path: Path, route4: str, route_6: str, wanted: str) -> None:
    write(tmp_path, {"proc/net/route": route4, "proc/net/ipv6_route": route_6})
    assert run_module("nccl_network_info", root=str(tmp_path))["default_interface"] == wanted


def test_interfaces_without_loopback_and_without_files(tmp_path: Path) -> None:
    for name in ("lo", "ibs1", "eno1"):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
    (tmp_path / "sys/class/net/bonding_masters").touch()
    assert run_module("nccl_network_info", root=str(tmp_path))["interfaces"] == ["eno1", "ibs1"]


def test_addresses_of_ports_by_version_and_family(tmp_path: Path) -> None:
    link = "fe80:0000:0000:0000:0e42:a1ff:fe00:0001"
    mapped = "0000:0000:0000:0000:0000:ffff:0a00:0007"
    entries = {
        10: ("2001:0db8:0000:0000:0000:0000:0000:0007", "RoCE v2", "ens1"),
        0: (link, "IB/RoCE v1", "ens1"),
        1: (link, "RoCE v2", "ens1"),
        3: (mapped, "RoCE v2", "ens1"),
        4: (EMPTY, "", ""),
    }
    write(tmp_path, gids("mlx5_0", 1, entries))
    found: list[dict[str, Any]] = run_module("nccl_network_info", root=str(tmp_path))["gids"]
    assert [(gid["index"], gid["type"], gid["family"]) for gid in found] == [
        (0, "IB/RoCE v1", "link"),
        (1, "RoCE v2", "link"),
        (3, "RoCE v2", "ipv4"),
        (10, "RoCE v2", "ipv6"),
    ]
    assert (found[2]["gid"], found[2]["netdev"], found[2]["device"], found[2]["port"]) == (
        "::ffff:10.0.0.7",
        "ens1",
        "mlx5_0",
        1,
    )


def test_a_host_without_anything_is_described_empty(tmp_path: Path) -> None:
    described = run_module("nccl_network_info", root=str(tmp_path))
    empty = {"interfaces": [], "addresses": {}, "mtus": {}, "default_interface": "", "gids": [], "peermem": False}
    assert {name: described[name] for name in empty} == empty


def test_interfaces_say_address_and_mtu(tmp_path: Path) -> None:
    (tmp_path / "sys/class/net/eno1").mkdir(parents=True)
    (tmp_path / "sys/class/net/ibs1").mkdir(parents=True)
    rows = [
        "fe800000000000000042acfffe110002 02 40 20 80     eno1",
        "fd000000000000000000000000000007 02 40 00 80     eno1",
        "00000000000000000000000000000001 01 80 10 80       lo",
    ]
    write(tmp_path, {"proc/net/if_inet6": "\n".join(rows), "sys/class/net/eno1/mtu": "9000\n"})
    described = run_module("nccl_network_info", root=str(tmp_path))
    assert described["addresses"] == {"eno1": "fd00::7"}
    assert described["mtus"] == {"eno1": 9000, "ibs1": None}


def test_peermem_is_seen(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia_peermem").mkdir(parents=True)
    assert run_module("nccl_network_info", root=str(tmp_path))["peermem"] is True


def test_this_machine_has_a_loopback_at_most_and_no_error() -> None:
    described = run_module("nccl_network_info")
    assert "lo" not in described["interfaces"]
    assert described["default_interface"] in ["", *described["interfaces"]]
    assert set(described["addresses"]) <= set(described["interfaces"])
