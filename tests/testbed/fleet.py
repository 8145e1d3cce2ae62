# SPDX-License-Identifier: Apache-2.0
"""What a fleet is, as a file of fleets/ describes it: its hosts, and the names and addresses that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

import yaml

from testbed import LABEL, ROOT, ROOT_LABEL, STATE, SetupError

FLEETS = Path(__file__).parent / "fleets"
SERVICE_NAMES = ("hub.test", "cdn.hub.test", "mirror.test")


@dataclass(frozen=True)
class Host:
    """One host of a fleet: the name of its hardware description, and path -> mount options of file systems in memory.

    An isolated one lives in a network without a way out and without names.
    """

    name: str
    hardware: str
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    isolated: bool = False


@dataclass(frozen=True)
class Fleet:
    """A fleet as its file describes it: its hosts, and the folders that they have in common, each a volume."""

    name: str
    hosts: tuple[Host, ...]
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no path of a folder."""
        for folder in self.shared:
            if not re.fullmatch(r"(/[\w.-]+)+", folder):
                raise ValueError(f"shared has {folder!r}")

    @property
    def state(self) -> Path:
        """The folder of what this fleet writes."""
        return STATE / self.name

    @property
    def network(self) -> str:
        """The name of its network."""
        return f"h20-{self.name}"

    @property
    def isolated_network(self) -> str:
        """The name of the network of its isolated hosts."""
        return f"{self.network}-isolated"

    @property
    def has_isolated(self) -> bool:
        """Whether it has isolated hosts."""
        return any(host.isolated for host in self.hosts)

    def network_of(self, name: str) -> str:
        """The name of the network in which the container `name` lives."""
        return (
            self.isolated_network if any(host.isolated and host.name == name for host in self.hosts) else self.network
        )

    @property
    def volumes(self) -> dict[str, str]:
        """The name of the volume -> the folder that its hosts share by it."""
        return {f"{self.network}{folder.rstrip('/').replace('/', '-')}": folder for folder in self.shared}

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its containers, its networks and its volumes."""
        return {LABEL: self.name, ROOT_LABEL: str(ROOT)}


def names() -> list[str]:
    """Return the names of all fleets that there is a file for."""
    return sorted(path.stem for path in FLEETS.glob("*.yml"))


def load(name: str) -> Fleet:
    """Return the fleet of fleets/<name>.yml; SetupError where there is none or the file is not a fleet."""
    path = FLEETS / f"{name}.yml"
    if not path.exists():
        raise SetupError(f"There is no fleet {name!r}; there are: {', '.join(names())}. A fleet is a file in {FLEETS}.")
    return parse(name, path.read_text())


def parse(name: str, text: str) -> Fleet:
    """Return the fleet that the YAML `text` describes: hosts: {<name>: {hardware: <description>}}.

    A host may have `tmpfs`, {<path>: <options>}, and be `isolated`. The fleet may have folders that its hosts share: shared: [<path>].
    """
    try:
        described = yaml.safe_load(text)
        hosts = tuple(Host(host, **settings) for host, settings in described.pop("hosts").items())
        return Fleet(name, hosts, **{key: tuple(value) for key, value in described.items()})
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise SetupError(
            f"fleets/{name}.yml is not a fleet ({error}). Each host needs `hardware`, may have `tmpfs` and be `isolated`; "
            "the fleet may have `shared`, a list of absolute paths."
        ) from error


def addresses(fleet: Fleet, subnet: IPv4Network, isolated: IPv4Network | None = None) -> dict[str, str]:
    """Return container name -> address: the services at .2 and .3, the hosts from .11 on in the order of the fleet's file.

    Hosts that are isolated have theirs in the subnet `isolated`.
    """
    services = {f"{fleet.name}-hub": str(subnet[2]), f"{fleet.name}-mirror": str(subnet[3])}
    homes = [isolated if host.isolated and isolated else subnet for host in fleet.hosts]
    return services | {
        host.name: str(home[11 + number]) for number, (host, home) in enumerate(zip(fleet.hosts, homes, strict=True))
    }
