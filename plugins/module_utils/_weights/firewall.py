# SPDX-License-Identifier: Apache-2.0
"""The ports of the work are open to the hosts of the site alone: a table of nftables that is there while the work runs.

It takes away and never gives: where a host's own rules keep the ports shut, they stay shut.
"""

from __future__ import annotations

import ipaddress
import subprocess

from . import addresses, children
from .job import Job, Site

TABLE = "inet h20_fleet_weights"


class FirewallError(Exception):
    """The ports cannot be closed to others; the text says why and what to do."""


def rules(site: Site) -> str:
    """The table, as nft reads it; it replaces one that is there already."""
    ports = f"{site.port}-{site.peer_port(max(site.processes, 1) - 1)}"
    hosts = ", ".join(sorted(addresses.all_of(site), key=ipaddress.ip_address))
    accept = f"ip saddr {{ {hosts} }} tcp dport {ports} accept" if hosts else ""
    return f"""\
table {TABLE}
delete table {TABLE}
table {TABLE} {{
    chain input {{
        type filter hook input priority filter - 5; policy accept;
        iifname lo accept
        {accept}
        tcp dport {ports} drop
    }}
}}
"""


def up(job: Job) -> None:
    """Let nobody but the hosts of the site reach the ports; raises FirewallError."""
    if job.site:
        _nft(rules(job.site))


def down(job: Job) -> None:
    """Leave no trace of up()."""
    if job.site:
        _nft(f"table {TABLE}\ndelete table {TABLE}\n")


def _nft(commands: str) -> None:
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=commands,
            env=children.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise FirewallError("nft is not here to close the ports to other hosts -> install nftables") from error
    if done.returncode:
        raise FirewallError(
            f"nft refuses the table {TABLE}: {done.stderr.strip()} -> see whether the kernel has nf_tables"
        )
