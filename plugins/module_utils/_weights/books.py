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

#: A host that has not been heard of for so many seconds leads no group, relays nothing, and is not waited for when the exchange ends.
SILENCE = 60
#: Seconds without one more byte after which nobody waits for the relay of a file any longer. Its peers may queue for 10 before they are let in.
HESITATION = 30
#: Files on their way from an origin to their relays: so many at first, so that the others soon have something to relay, and one more with each that has
#: arrived, up to so many a process of aria2, so that the link does not idle while one is let in.
RELAYED, FEWEST = 3, 4

FINISHED = ("seeding", "complete", "failed")


@dataclasses.dataclass(frozen=True)
class Offer:
    """A file that an origin has proved; `info_hash` names its torrent, "" where the origin serves it over HTTP.

    An origin sends each torrent once, to its `relay`. The stages: `first`, that host alone gets it yet; `relayed`, the others get it from there and from
    each other, and nobody new calls the origin; `open`, all get it from all, since there is no relay that can be relied on.
    """

    origin: str
    info_hash: str = ""
    relay: str = ""
    stage: str = "open"


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


@dataclasses.dataclass(frozen=True)
class Had:
    """What the relay of a file has of it: so many bytes, and whether others can get it there."""

    bytes: int = 0
    gives: bool = False


@dataclasses.dataclass
class _Relay:
    """The host that gets a file first, and what it has of it since when."""

    host: str
    since: float
    had: Had = Had()


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
        self._introduced: dict[str, set[str]] = {}
        self._relays: dict[str, _Relay] = {}
        self._open: set[str] = set()
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
            if not hashed:
                self._open.add(path)

    def torrent(self, info_hash: str) -> bytes:
        """The torrent of this hash; raises KeyError."""
        with self._lock:
            return self._torrents[info_hash]

    def begin(self, host: str) -> None:
        """The host has been started, and serves nothing of what it served before."""
        with self._lock:
            for known in (self._confirmed, self._introduced):
                known.pop(host, None)
            for path in [path for path, relay in self._relays.items() if relay.host == host]:
                self._give_up(path)

    def confirm(self, host: str, info_hash: str) -> None:
        """An origin is among the peers of the torrent: who had asked before would have met nobody."""
        with self._lock:
            self._confirmed.setdefault(host, set()).add(info_hash)

    def withdraw(self, host: str, info_hash: str) -> None:
        """An origin is among the peers no more: who asks from now on meets the relay."""
        with self._lock:
            self._confirmed.setdefault(host, set()).discard(info_hash)

    def introduce(self, host: str, info_hash: str) -> None:
        """The tracker of a group's leader knows the torrent, and the leader as its peer."""
        with self._lock:
            self._introduced.setdefault(host, set()).add(info_hash)

    def advance(self, host: str, path: str, had: Had) -> None:
        """Note what the relay of a file has of it; what another host says of it is of no matter."""
        with self._lock:
            relay = self._relays.get(path)
            if relay and relay.host == host and relay.had != had:
                if relay.had.gives and not had.gives:
                    self._give_up(path)
                relay.had, relay.since = had, time.monotonic()

    def news(self, host: str, *, ready: bool = True) -> News:
        """What the host may fetch: in a group with a living leader, what that one's tracker knows. It is `ready` to be a relay, or not. Raises KeyError."""
        with self._lock:
            leader = self.site.leader(self.site.hosts[host].group)
            led = self._grouped and host != leader and self._leads(leader)
            for path in [path for path, relay in self._relays.items() if self._stuck(path, relay)]:
                self._give_up(path)
            if ready and not led and not self._failed(host):
                self._deal(host)
            offers = {
                path: self._told_of(path, offer)
                for path, offer in self._offers.items()
                if host == offer.origin or (self._led_to(offer, leader) if led else self._shown(path, offer, host))
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

    def _deal(self, host: str) -> None:
        """Make the host the relay of what it may be, where an origin has a hand free: who asks first gets it, who is slow or dead does not ask."""
        busy: dict[str, list[str]] = {origin: [] for origin in self.site.origins}
        arrived = dict.fromkeys(self.site.origins, 0)
        for path, relay in self._relays.items():
            if self._arrived(path):
                arrived[self._offers[path].origin] += 1
            else:
                busy[self._offers[path].origin].append(relay.host)
        for path, offer in self._offers.items():
            hands = busy[offer.origin]
            most = min(FEWEST + arrived[offer.origin], max(RELAYED * self.site.processes, FEWEST))
            share = -(-most // max(len(self.site.hosts) - 1, 1))
            if len(hands) < most and hands.count(host) < share and self._undealt(path, offer, host):
                self._relays[path] = _Relay(host, time.monotonic())
                hands.append(host)

    def _undealt(self, path: str, offer: Offer, host: str) -> bool:
        known = path in self._relays or path in self._open
        return not known and host != offer.origin and self._confirms(offer)

    def _arrived(self, path: str) -> bool:
        return self._relays[path].had.bytes >= self._files[path].size

    def _stuck(self, path: str, relay: _Relay) -> bool:
        """Whether nobody can count on the relay: it failed, or it says nothing, or it has got nothing for too long."""
        if self._arrived(path):
            return self._failed(relay.host) or self._silence(relay.host) > SILENCE
        return self._failed(relay.host) or time.monotonic() - relay.since > HESITATION

    def _give_up(self, path: str) -> None:
        del self._relays[path]
        self._open.add(path)

    def _stage(self, path: str) -> str:
        if path in self._open:
            return "open"
        return "relayed" if path in self._relays and self._relays[path].had.gives else "first"

    def _told_of(self, path: str, offer: Offer) -> Offer:
        relay = self._relays[path].host if path in self._relays else ""
        return dataclasses.replace(offer, relay=relay, stage=self._stage(path))

    def _confirms(self, offer: Offer) -> bool:
        return not offer.info_hash or offer.info_hash in self._confirmed.get(offer.origin, ())

    def _shown(self, path: str, offer: Offer, host: str) -> bool:
        """Whether a host would meet those at the exchange's tracker from whom it is to get the file."""
        stage = self._stage(path)
        if stage == "open":
            return self._confirms(offer)
        if path in self._relays and self._relays[path].host == host:
            return True
        # A failed origin withdraws no more.
        return stage == "relayed" and (not self._confirms(offer) or self._failed(offer.origin))

    def _led_to(self, offer: Offer, leader: str) -> bool:
        """Whether a host would meet its leader at the leader's tracker."""
        return not offer.info_hash or offer.info_hash in self._introduced.get(leader, ())

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
