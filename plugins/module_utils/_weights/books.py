# SPDX-License-Identifier: Apache-2.0
"""The books of a site: which files are on offer, whose trackers know them, and how far every host is."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t

from . import torrent
from .job import Job
from .manifest import Manifest

#: A host that has not been heard of for so many seconds leads no group, and is not waited for when the exchange ends.
SILENCE = 60

FINISHED = ("seeding", "complete", "failed")


@dataclasses.dataclass(frozen=True)
class Offer:
    """A file that an origin has proved; `info_hash` names its torrent, "" where the origin serves it over HTTP."""

    origin: str
    info_hash: str = ""


@dataclasses.dataclass(frozen=True)
class News:
    """What a host learns: offers by path, the host whose tracker knows them, the errors of origins that failed, the bytes that all hosts have together."""

    offers: t.Mapping[str, Offer]
    tracker: str
    failed: t.Mapping[str, str]
    bytes: int

    @classmethod
    def of(cls, content: dict[str, t.Any]) -> News:
        offers = {path: Offer(**offer) for path, offer in content["offers"].items()}
        return cls(offers, content["tracker"], content["failed"], content["bytes"])


class Books:
    """Offers, torrents and accounts. `allow` puts a hash on the exchange's own tracker, and returns when it is there."""

    def __init__(self, job: Job, manifest: Manifest, allow: t.Callable[[str], None] | None) -> None:
        self.site = job.shared_site
        self._grouped = job.distribution == "peer"
        self._files = {file.path: file for file in manifest.files}
        self._patience = job.limits.give_up
        self._allow = allow
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._offers: dict[str, Offer] = {}
        self._torrents: dict[str, bytes] = {}
        self._confirmed: dict[str, set[str]] = {}
        self._accounts: dict[str, dict[str, t.Any] | None] = dict.fromkeys(self.site.hosts)
        self._heard: dict[str, float] = {}
        self._told: set[str] = set()

    def offer(self, path: str, origin: str, content: bytes) -> None:
        """Note what an origin has, with its torrent or without; the others hear of a torrent when its origin confirms it. Raises KeyError, ValueError."""
        if origin not in self.site.origins:
            raise KeyError(origin)
        file = self._files[path]
        hashed = torrent.info_hash(content, file) if content else ""
        if hashed and self._allow:
            self._allow(hashed)
        with self._lock:
            self._torrents[hashed] = content
            self._offers[path] = Offer(origin, hashed)

    def torrent(self, info_hash: str) -> bytes:
        """The torrent of this hash; raises KeyError."""
        with self._lock:
            return self._torrents[info_hash]

    def confirm(self, host: str, info_hash: str) -> None:
        """An origin is among the peers of the torrent, or the tracker of a group's leader knows it: who had asked before would have met nobody."""
        with self._lock:
            self._confirmed.setdefault(host, set()).add(info_hash)

    def news(self, host: str) -> News:
        """What the host may fetch: in a group with a living leader, what that one's tracker knows. Raises KeyError."""
        with self._lock:
            leader = self.site.leader(self.site.hosts[host].group)
            led = self._grouped and host != leader and self._leads(leader)
            offers = {
                path: offer
                for path, offer in self._offers.items()
                if host == offer.origin or self._shown(offer, {offer.origin, leader} if led else {offer.origin})
            }
            failed = {name: self._field(name, "error", "") for name in self.site.origins if self._failed(name)}
            if self.site.exchange in failed:
                self._told.add(host)
            total = sum(self._field(name, "bytes", 0) for name in self._accounts)
            return News(offers, leader if led else self.site.exchange, failed, total)

    def account(self, host: str, account: dict[str, t.Any]) -> bool:
        """Note what a host says of itself; whether the site still needs it. Raises KeyError."""
        with self._lock:
            if host not in self._accounts:
                raise KeyError(host)
            self._accounts[host] = account
            self._heard[host] = time.monotonic()
            needed = not self._finished()
            if not needed:
                self._told.add(host)
            elif account.get("phase") not in FINISHED:
                self._told.discard(host)
            return needed

    def leave(self, host: str) -> None:
        """The host ends, and will not ask again."""
        with self._lock:
            self._told.add(host)

    def finished(self) -> bool:
        """Whether every host is complete or failed, or has said nothing for longer than anybody waits."""
        with self._lock:
            return self._finished()

    def all_told(self) -> bool:
        """Whether every host that is still there has heard how it ended."""
        with self._lock:
            present = {host for host in self._heard if self._silence(host) < SILENCE}
            return present <= self._told | {self.site.exchange}

    def summary(self) -> dict[str, t.Any]:
        """What the controller reads."""
        with self._lock:
            return {"hosts": dict(self._accounts), "files": len(self._files), "offered": len(self._offers)}

    def _shown(self, offer: Offer, confirming: t.Iterable[str]) -> bool:
        return not offer.info_hash or all(offer.info_hash in self._confirmed.get(host, ()) for host in confirming)

    def _field(self, host: str, name: str, default: t.Any) -> t.Any:
        return (self._accounts[host] or {}).get(name, default)

    def _failed(self, host: str) -> bool:
        return bool(self._field(host, "phase", "") == "failed")

    def _silence(self, host: str) -> float:
        return time.monotonic() - self._heard.get(host, self._started)

    def _leads(self, host: str) -> bool:
        return host != self.site.exchange and self._silence(host) < SILENCE and not self._failed(host)

    def _finished(self) -> bool:
        return all(
            self._field(host, "phase", "") in FINISHED or self._silence(host) > self._patience
            for host in self._accounts
        )
