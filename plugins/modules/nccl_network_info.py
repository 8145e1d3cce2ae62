#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Read-only description of what NCCL needs to know of the network where a replica spans hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: nccl_network_info
short_description: Describe what NCCL needs to know of the network between hosts
version_added: 1.0.0
description:
  - Reads network interfaces, their addresses, the default route and the addresses of RoCE ports, runs no program and changes nothing.
  - An absent or unreadable source is null or empty and never an error.
options:
  root:
    description: Folder that stands for V(/), with C(sys) and C(proc) of a captured host below it.
    type: path
    default: /
extends_documentation_fragment: [h20.fleet.attributes.read_only]
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Describe the network
  h20.fleet.nccl_network_info:
  register: network
"""

RETURN = r"""
interfaces:
  description: Network interfaces but loopback, sorted.
  returned: always
  type: list
  elements: str
  sample: [eno1, ibs1]
default_interface:
  description: Interface of the default route, of IPv4 before IPv6 and with the lowest metric; empty where there is none.
  returned: always
  type: str
  sample: eno1
addresses:
  description: Address of each interface that has one, of IPv4 before IPv6, none that holds on one link alone. IPv4 is told of a live host alone.
  returned: always
  type: dict
  sample: {eno1: 10.0.0.7}
mtus:
  description: Largest packet of each interface, in bytes.
  returned: always
  type: dict
  sample: {eno1: 1500, ibs1: 9000}
gids:
  description: Addresses of the RoCE and InfiniBand ports (GIDs), by device, port and index; empty ones are left out.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description: Name of the adapter.
      type: str
      sample: mlx5_0
    port:
      description: Number of the port.
      type: int
    index:
      description: Index, as C(NCCL_IB_GID_INDEX) takes it.
      type: int
      sample: 3
    type:
      description: V(RoCE v2), or V(IB/RoCE v1).
      type: str
    family:
      description: V(ipv4), V(ipv6), or V(link) for an IPv6 address that holds on one link alone.
      type: str
    gid:
      description: The address.
      type: str
      sample: "::ffff:10.0.0.7"
    netdev:
      description: Network interface that has the address; null where the kernel does not say.
      type: str
peermem:
  description: Whether nvidia_peermem is loaded, one of the two ways by which adapters reach GPU memory; the other is DMA-BUF of the open module.
  returned: always
  type: bool
"""

import fcntl
import ipaddress
import socket
import struct
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _sysfs

#: Flag of a route that is up, and the metric field, in hexadecimal both in /proc/net/ipv6_route.
ROUTE_UP = 0x1
#: Asks the kernel for the IPv4 address of an interface, which no file tells (netdevice(7)).
SIOCGIFADDR = 0x8915


def interfaces(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "sys/class/net").glob("*") if path.name != "lo" and not path.is_file())


def default_interface(root: Path) -> str:
    """Interface of the default route with the lowest metric, of IPv4 if there is one."""
    routes: list[tuple[int, int, str]] = []
    for line in _sysfs.read_text(root / "proc/net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and (fields[1], fields[7]) == ("00000000", "00000000") and int(fields[3], 16) & ROUTE_UP:
            routes.append((4, int(fields[6]), fields[0]))
    for line in _sysfs.read_text(root / "proc/net/ipv6_route").splitlines():
        fields = line.split()
        # The kernel's own "unreachable" stands on lo.
        if len(fields) > 9 and fields[1] == "00" and int(fields[8], 16) & ROUTE_UP and fields[9] != "lo":
            routes.append((6, int(fields[5], 16), fields[9]))
    return min(routes)[2] if routes else ""


def addresses(root: Path, names: list[str]) -> dict[str, str]:
    """One address of each interface by which other hosts reach it."""
    found: dict[str, str] = {}
    for line in _sysfs.read_text(root / "proc/net/if_inet6").splitlines():
        fields = line.split()
        if len(fields) > 5 and not (address := ipaddress.IPv6Address(int(fields[0], 16))).is_link_local:
            found.setdefault(fields[5], str(address))
    if root == Path("/"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for name in names:
                try:
                    answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:
                    continue
                found[name] = socket.inet_ntoa(answer[20:24])
    return {name: found[name] for name in names if name in found}


def mtu(root: Path, name: str) -> int | None:
    text = _sysfs.read_text(root / "sys/class/net" / name / "mtu")
    return int(text) if text.isdecimal() else None


def gids(root: Path) -> list[dict[str, t.Any]]:
    """All addresses of all ports that hold something."""
    found: list[dict[str, t.Any]] = []
    for path in (root / "sys/class/infiniband").glob("*/ports/*/gids/*"):
        port = path.parent.parent
        try:
            address = ipaddress.IPv6Address(_sysfs.read_text(path))
        except ValueError:
            continue
        if int(address) == 0:
            continue
        found.append(
            {
                "device": port.parent.parent.name,
                "port": int(port.name),
                "index": int(path.name),
                "type": _sysfs.read_text(port / "gid_attrs/types" / path.name),
                "family": "ipv4" if address.ipv4_mapped else "link" if address.is_link_local else "ipv6",
                "gid": f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address),
                "netdev": _sysfs.read_text(port / "gid_attrs/ndevs" / path.name) or None,
            }
        )
    return sorted(found, key=lambda gid: (gid["device"], gid["port"], gid["index"]))


def main() -> None:
    module = AnsibleModule(argument_spec={"root": {"type": "path", "default": "/"}}, supports_check_mode=True)
    root = Path(module.params["root"])
    names = interfaces(root)
    module.exit_json(
        changed=False,
        interfaces=names,
        addresses=addresses(root, names),
        mtus={name: mtu(root, name) for name in names},
        default_interface=default_interface(root),
        gids=gids(root),
        peermem=(root / "sys/module/nvidia_peermem").is_dir(),
    )


if __name__ == "__main__":
    main()
