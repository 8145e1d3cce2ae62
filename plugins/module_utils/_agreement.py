# SPDX-License-Identifier: Apache-2.0
"""In what the hosts of one run differ from most of them: GPUs, how they are joined, driver, adapters and their settings. Pure functions."""

from __future__ import annotations

import collections
import typing as t

from ansible_collections.h20.fleet.plugins.module_utils import _nccl

#: What a host does not have.
NONE = "none"
#: Settings of a site that may differ from host to host: names of interfaces and adapters, and what is logged.
OWN = {"NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_DEBUG", "NCCL_DEBUG_FILE", "NCCL_DEBUG_SUBSYS"}

Traits = dict[str, str]


def traits(gpu: t.Mapping[str, t.Any], network: t.Mapping[str, t.Any], settings: t.Mapping[str, t.Any]) -> Traits:
    """What the hosts of a fleet have in common, by its name.

    Of what gpu_info says, of nccl_network_info ({} where it was not asked), and of the variables of NCCL that the site sets.
    """
    found = {
        "GPUs": f"{len(gpu['pci_gpus'])} x {_products(gpu)}",
        "GPUs by NUMA node": " ".join(f"{node}:{count}" for node, count in _nccl.gpu_nodes(gpu).items()) or NONE,
        "driver": (gpu["smi"] or {}).get("driver_version") or NONE,
        "nvidia module": {True: "open", False: "proprietary"}.get(gpu["module"]["open"], NONE),
    }
    found |= {f"{first}-{second}": link for first, second, link in gpu["topology"]}
    for port in gpu["infiniband"]:
        name = _nccl.label(port)
        found |= {
            f"state of {name}": f"{port['state']} ({port['physical_state']})",
            f"rate of {name}": f"{port['link_layer']} {port['rate_gbps'] or 0:g} Gbit/s",
            f"NUMA node of {name}": _text(port["numa_node"]),
            f"firmware of {port['device']}": _text(port["firmware"]),
            f"MTU of {name}": _text(port["mtu"]),
            f"traffic class of {name}": _text(port["traffic_class"]),
        }
    found |= {name: _nccl.text(value) for name, value in settings.items() if name not in OWN}
    return found | (_between_hosts(gpu, network) if network else {})


def _between_hosts(gpu: t.Mapping[str, t.Any], network: t.Mapping[str, t.Any]) -> Traits:
    default = network["default_interface"]
    found = {
        # Whether the module that it takes is loaded yet, each host is told by itself.
        "GPUDirect RDMA": _nccl.gpudirect(gpu, network, wanted=True),
        "MTU of the default route": _text(network["mtus"].get(default)),
    }
    for gid in network["gids"]:
        if gid["type"] == "RoCE v2":
            # By index: the first of a family is the one that NCCL is told.
            found.setdefault(
                f"GID index of {gid['device']}:{gid['port']} (RoCE v2, {gid['family']})", str(gid["index"])
            )
    return found


def differences(hosts: t.Mapping[str, Traits]) -> dict[str, list[str]]:
    """By host, in what it differs from most of the hosts, with a remedy; where no value has a majority, each host is named with its own."""
    told: dict[str, list[str]] = {}
    for trait in dict.fromkeys(name for found in hosts.values() for name in found):
        values = {host: found.get(trait, NONE) for host, found in hosts.items()}
        (common, count), *rest = collections.Counter(values.values()).most_common()
        if not rest:
            continue
        majority = count > len(hosts) / 2
        others = f"{count} of {len(hosts)} hosts have {common}" if majority else "the hosts have " + _counted(values)
        for host, value in values.items():
            if value != common or not majority:
                told.setdefault(host, []).append(f"{trait} is {value}, while {others}")
    return told


def lines(told: t.Mapping[str, t.Sequence[str]], most: int = 6) -> dict[str, str]:
    """One line a host; of a host that differs in all and everything, as much as can be read."""
    return {
        host: f"{host} differs from the other hosts: {'; '.join(found[:most])}{f'; and {len(found) - most} more' if len(found) > most else ''}"
        " -> make the hosts the same, or serve from them apart"
        for host, found in told.items()
    }


def _counted(values: t.Mapping[str, str]) -> str:
    return ", ".join(f"{value} ({count})" for value, count in collections.Counter(values.values()).most_common())


def _products(gpu: t.Mapping[str, t.Any]) -> str:
    """The names of the GPUs; their PCI device ids where the driver does not answer."""
    names = (
        {each["product"] for each in gpu["smi"]["gpus"]} if gpu["smi"] else {each["device"] for each in gpu["pci_gpus"]}
    )
    return " and ".join(sorted(map(str, names))) or NONE


def _text(value: t.Any) -> str:
    return NONE if value is None else str(value)
