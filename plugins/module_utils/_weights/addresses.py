# SPDX-License-Identifier: Apache-2.0
"""The addresses of a site's hosts, IPv4 as the trackers of the distributions have it."""

from __future__ import annotations

import contextlib
import socket

from .job import Site

#: Any port: nothing is sent, the kernel only says which way it would go.
DISCARD = 9


def resolved(address: str) -> list[str]:
    """What a name or an address stands for; nothing where nobody knows it."""
    with contextlib.suppress(OSError):
        return [str(entry[4][0]) for entry in socket.getaddrinfo(address, None, socket.AF_INET, socket.SOCK_STREAM)]
    return []


def all_of(site: Site) -> set[str]:
    """The addresses of all hosts; one whose name nobody knows is left out, since nobody reaches it either."""
    return {found for member in site.hosts.values() for found in resolved(member.address)}


def own(site: Site, host: str) -> str:
    """The address that `host`, which is this one, listens on and calls from; "" where it cannot be told.

    Its own name is no help where /etc/hosts gives it a loopback address: then it is the address that leads to the others.
    """
    given = site.hosts[host].address
    ways = (_way(member.address) for name, member in site.hosts.items() if name != host)
    for address in (*resolved(given), *ways):
        if _is_here(address) and (address == given or not address.startswith("127.")):
            return address
    return ""


def _is_here(address: str) -> bool:
    with socket.socket() as trial, contextlib.suppress(OSError):
        trial.bind((address, 0))
        return address != ""
    return False


def _way(target: str) -> str:
    """This host's address on the way to another, "" where there is no way."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((target, DISCARD))
        return str(probe.getsockname()[0])
    return ""
