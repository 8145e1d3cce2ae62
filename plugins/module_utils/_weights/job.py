# SPDX-License-Identifier: Apache-2.0
"""What a host is asked to do with one revision: a JSON file, written by the module model_revision, read by the unit."""

from __future__ import annotations

import dataclasses
import json
import typing as t
from pathlib import Path

DISTRIBUTIONS = ("source", "peer", "http", "shared")


class JobError(ValueError):
    """The job cannot be understood; the text says why."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the bytes come from, by `kind`; for `url` and the rest see sources.py, where each kind says what it needs."""

    kind: str
    url: str
    revision: str = ""
    region: str = ""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a transfer may take. Rates in bytes a second, 0 for none; times in seconds."""

    connections: int = 4
    stall: float = 30
    give_up: float = 1800
    download: int = 0
    upload: int = 0
    upload_serving: int = 0


@dataclasses.dataclass(frozen=True)
class Member:
    """A host of the site: its address for the others, and the rack or pod that it is in ("" where the site has none)."""

    address: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Site:
    """The hosts that get the revision together. `origins` fetch from the sources, disjoint files each; the first is the exchange of all.

    Ports follow each other: `port` of the exchange, then of files over HTTP, of the tracker, and of each of the `processes`.
    """

    hosts: t.Mapping[str, Member]
    origins: tuple[str, ...]
    port: int
    processes: int

    @property
    def exchange(self) -> str:
        """Name of the host that knows what is on offer and how far everybody is."""
        return self.origins[0]

    @property
    def files_port(self) -> int:
        return self.port + 1

    @property
    def tracker_port(self) -> int:
        return self.port + 2

    def peer_port(self, process: int) -> int:
        """Port of the process number `process`, from 0."""
        return self.port + 3 + process

    def leader(self, group: str) -> str:
        """Name of the host that has the tracker of a group and brings its bytes in: the exchange for its own group, else the first of the group."""
        if self.hosts[self.exchange].group == group:
            return self.exchange
        return next(name for name, member in self.hosts.items() if member.group == group)


@dataclasses.dataclass(frozen=True)
class Job:
    """One revision on one host. `stamp` is the file that says what was proved; `state` the folder of the work's own files."""

    manifest: Path
    destination: Path
    stamp: Path
    state: Path
    host: str
    distribution: str
    sources: tuple[Source, ...]
    limits: Limits
    site: Site | None = None

    @property
    def partial(self) -> Path:
        """Where the revision grows until all of it is proved; on the same filesystem as the destination."""
        return self.destination.with_name(f"{self.destination.name}.partial")

    @property
    def progress(self) -> Path:
        """What the work says of itself, as progress.py writes it."""
        return self.state / "progress.json"

    @property
    def shared_site(self) -> Site:
        """The site, for work that has one; raises JobError where the host is alone."""
        if self.site is None:
            raise JobError("the job names no site -> run the stage again: --tags model")
        return self.site

    @property
    def hosts(self) -> Path:
        """On the exchange: what all hosts say of themselves."""
        return self.state / "hosts.json"

    @classmethod
    def load(cls, path: Path) -> Job:
        """The job in the file `path`; raises JobError."""
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JobError(
                f"{path} is no job of this program ({error}) -> run the stage again: --tags model"
            ) from error

    @classmethod
    def of(cls, content: dict[str, t.Any]) -> Job:
        """The job that a dict with the names of the fields describes; raises ValueError, KeyError or TypeError."""
        paths = {name: Path(content[name]) for name in ("manifest", "destination", "stamp", "state")}
        if content["distribution"] not in DISTRIBUTIONS:
            raise ValueError(f"distribution {content['distribution']} is none of {', '.join(DISTRIBUTIONS)}")
        site = content.get("site")
        return cls(
            **paths,
            host=content["host"],
            distribution=content["distribution"],
            sources=tuple(Source(**source) for source in content["sources"]),
            limits=Limits(**content.get("limits", {})),
            site=_site(site, content["host"]) if site else None,
        )


def _site(content: dict[str, t.Any], host: str) -> Site:
    hosts = {name: Member(**member) for name, member in content["hosts"].items()}
    origins = tuple(content["origins"])
    if not origins or not {host, *origins} <= hosts.keys():
        raise ValueError("the site's hosts lack this host or an origin")
    return Site(hosts, origins, content["port"], content["processes"])
