# SPDX-License-Identifier: Apache-2.0
"""A host's part in spreading the revision over its site: what it has proved others may have from it, what it lacks it gets from them.

One thread asks the exchange for news, offers what this host has proved as an origin, and tells the carrier (a swarm of peers, or nginx and HTTP)
what to serve and what to receive.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import subprocess
import threading
import time
import typing as t
from pathlib import Path

from . import addresses
from .books import Books, Had, News, Offer
from .children import ChildError
from .exchange import Client, Exchange, ExchangeError
from .job import Job, Limits
from .manifest import File, Manifest
from .progress import Progress
from .swarm import Swarm
from .torrent import TorrentError
from .tracker import Tracker, announce, takes
from .web import Web

#: Seconds between two questions to the exchange, at least, and how many it gets a second from all hosts together.
TURN, QUESTIONS = 1.0, 100
#: Seconds between two accounts of the same phase, two looks at what else the host does, and between two introductions of a leader to its group.
REPORT, LOOK, INTRODUCTION = 4, 10, 900
#: Seconds from the time when a peer is at work until its tracker knows it.
MOMENT = 0.5
#: Seconds for which the failure of an origin means nothing to a host that has just begun: it may be of the run before.
STALE = 30
#: Seconds that the exchange waits for everybody to hear how it ended.
FAREWELL = 30


class SpreadError(Exception):
    """The site cannot give the files; the text says why and what to do."""


class Carrier(t.Protocol):
    """How files go from host to host. One thread uses it; what cannot go on raises ChildError or OSError."""

    def __contains__(self, file: File, /) -> bool:
        """Whether it serves or receives the file."""

    def start(self, tree: Path, /) -> None:
        """Begin; the files of this host lie below `tree`."""

    def move(self, tree: Path, /) -> None:
        """They lie there from now on."""

    def describe(self, file: File, /) -> bytes:
        """What others need to know of a file that they get from here."""

    def serve(self, file: File, description: bytes, address: str, /) -> None:
        """Give others the file; `address` is the tracker's or the origin's."""

    def serves(self, file: File, /) -> bool:
        """Whether others can get the file from here by now."""

    def room(self, file: File, /) -> bool:
        """Whether it is time to get one more file from others."""

    def receive(self, file: File, description: bytes, address: str, /) -> None:
        """Get the file from others."""

    def drop(self, file: File, /) -> None:
        """Forget the file, for it is wrong."""

    def poll(self) -> list[File]:
        """The files that have arrived since the last time."""

    def limit_upload(self, rate: int, /) -> None:
        """Send no more bytes a second, 0 for any number."""

    def close(self) -> None:
        """Leave no process and no listener."""


CARRIERS: dict[str, t.Callable[[Job, Manifest, Path], Carrier]] = {"peer": Swarm, "http": Web}


class Spread:
    """With the distributions peer and http all of it; with the others no more than the hosts' accounts of themselves."""

    def __init__(self, job: Job, manifest: Manifest) -> None:
        self._job, self._manifest, self._site = job, manifest, job.shared_site
        self._files = {file.path: file for file in manifest.files}
        self._folder = job.state / "spread"
        self._own = addresses.own(self._site, job.host)
        self._client = Client(self._site, job.host)
        self._carrier = (
            CARRIERS[job.distribution](job, manifest, self._folder) if job.distribution in CARRIERS else None
        )
        self._tracker: Tracker | None = None
        self._books: Books | None = None
        self._exchange: Exchange | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._proved: set[File] = set()
        self._wanted: set[File] = set()
        self._rejected: set[File] = set()
        self._arrived: queue.SimpleQueue[File | SpreadError] = queue.SimpleQueue()
        self._progress = Progress(job.host)
        self._reported = ("", 0.0)
        self._needed = True
        self._started = self._heard = time.monotonic()
        self._looked = -float(LOOK)
        self._introduced: dict[str, float] = {}
        self._serving: dict[str, float] = {}
        self._confirmed: set[str] = set()
        self._hidden: set[File] = set()
        self._relayed: dict[str, Had] = {}
        self._begun = False
        self._tree = self._folder
        self._met = ""

    def start(self, tree: Path) -> None:
        """Begin to serve and to ask; the files of this host lie below `tree`. Raises SpreadError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._tree = tree
        try:
            if self._job.distribution == "peer" and self._leader == self._job.host:
                self._tracker = Tracker(self._folder / "tracker", self._own, self._site.tracker_port)
                self._tracker.start()
            if self._site.exchange == self._job.host:
                self._books = Books(self._job, self._manifest, self._tracker.allow if self._tracker else None)
                self._exchange = Exchange(self._job, self._books)
            if self._carrier:
                self._carrier.start(tree)
            self._thread.start()
        except (ChildError, OSError) as error:
            self.close()
            raise SpreadError(f"{error} -> free the port, or give the site others (model_port)") from error

    def offer(self, file: File) -> None:
        """The file is proved and lies below the tree: others may have it from here."""
        with self._lock:
            self._wanted.discard(file)
            self._proved.add(file)

    def receive(self, files: t.Sequence[File], arrived: t.Callable[[File], None], stop: threading.Event) -> None:
        """Get the files from the others; `arrived` is called with each as it comes, unproved. Returns when all have, or at `stop`. Raises SpreadError."""
        missing = {file for file in files if file.size}
        with self._lock:
            self._wanted |= missing
        for file in set(files) - missing:
            # Nobody needs to send an empty file.
            path = self._tree / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            arrived(file)
        while missing and not stop.is_set():
            try:
                event = self._arrived.get(timeout=1)
            except queue.Empty:
                continue
            if isinstance(event, SpreadError):
                raise event
            missing.discard(event)
            arrived(event)

    def reject(self, file: File) -> None:
        """What has arrived was wrong; the next receive() gets it again."""
        with self._lock:
            self._wanted.discard(file)
            self._rejected.add(file)

    def moved(self, tree: Path) -> None:
        """The files lie below `tree` from now on, and are served from there."""
        self._tree = tree
        if self._carrier:
            self._carrier.move(tree)

    def report(self, progress: Progress) -> None:
        """How far this host is; the site hears it within the next turns."""
        self._progress = progress

    def linger(self) -> None:
        """Serve until the site needs this host no more: all others are complete or failed, or have been silent for too long."""
        if not (self._carrier or self._exchange):
            return
        while self._needed and self._thread.is_alive() and time.monotonic() - self._heard < self._job.limits.give_up:
            self._stop.wait(0.2)

    def close(self) -> None:
        """Serve and ask no more: no process is left, and no listener."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._carrier:
            self._carrier.close()
        if self._tracker:
            self._tracker.close()
        if self._thread.ident:
            with contextlib.suppress(ExchangeError):
                self._tell()
                self._client.leave()
        if self._exchange and self._books:
            deadline = time.monotonic() + FAREWELL
            while not self._books.all_told() and time.monotonic() < deadline:
                time.sleep(0.2)
            self._exchange.close()

    @property
    def _leader(self) -> str:
        return self._site.leader(self._site.hosts[self._job.host].group)

    def _work(self) -> None:
        """What the thread does, until close() or what cannot go on."""
        pause = max(TURN, len(self._site.hosts) / QUESTIONS)
        while not self._stop.is_set():
            try:
                more = self._turn()
            except ExchangeError as error:
                more = False
                silence = time.monotonic() - self._heard
                if silence > self._job.limits.give_up:
                    self._arrived.put(
                        SpreadError(f"{error}, for {silence:.0f} s -> see to the host {self._site.exchange}")
                    )
            except (ChildError, TorrentError, OSError) as error:
                self._arrived.put(SpreadError(f"{error} -> run the stage again: it resumes"))
                return
            if not more:
                self._stop.wait(pause)

    def _turn(self) -> bool:
        """One round; whether there is more to do at once."""
        if not self._begun:
            self._client.begin()
            self._begun = True
        self._tell()
        if not self._carrier:
            return False
        for file in self._carrier.poll():
            with self._lock:
                self._wanted.discard(file)
            self._arrived.put(file)
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            self._carrier.limit_upload(upload_limit(self._job.limits))
        with self._lock:
            ready = bool(self._wanted or self._proved)
        news = self._client.news(ready=ready)
        self._heard = time.monotonic()
        self._judge(news)
        self._follow(self._carrier, news)
        if isinstance(self._carrier, Swarm):
            if self._tracker and not self._exchange:
                self._lead(self._tracker, self._carrier, news)
            self._show(self._carrier, news)
            self._relay(self._carrier, news)
        return self._offer_next(self._carrier, news)

    def _tell(self) -> None:
        """Say how far this host is, when that has changed or it is time."""
        phase, when = self._reported
        pause = max(REPORT, len(self._site.hosts) / QUESTIONS)
        if self._progress.phase != phase or time.monotonic() - when > pause:
            progress = self._progress
            self._needed = self._client.report(progress.as_dict())
            self._reported = (progress.phase, time.monotonic())
            self._heard = time.monotonic()

    def _judge(self, news: News) -> None:
        """Stop receiving where an origin will not give what is missing."""
        if self._wanted and news.failed and time.monotonic() - self._started > STALE:
            told = "; ".join(f"the origin {origin} failed: {error}" for origin, error in news.failed.items())
            self._arrived.put(SpreadError(told))

    def _lead(self, tracker: Tracker, swarm: Swarm, news: News) -> None:
        """As the leader of a group: let its tracker know what is on offer, and that this host, whose peers meet the exchange's, has it.

        The group hears of the offer last: who asks the tracker too early asks it again only minutes later.
        """
        for path, offer in news.offers.items():
            known = self._introduced.get(offer.info_hash)
            if known is None:
                tracker.allow(offer.info_hash)
            if known is None or time.monotonic() - known > INTRODUCTION:
                tracker.announce(offer.info_hash, swarm.port(self._files[path]))
                self._introduced[offer.info_hash] = time.monotonic()
            if known is None:
                self._client.introduce(offer.info_hash)

    def _show(self, swarm: Swarm, news: News) -> None:
        """As an origin: be among the peers of a torrent until its relay has come, or for all where there is none that can be relied on."""
        mine = {path: offer for path, offer in news.offers.items() if offer.origin == self._job.host}
        # An exchange that was started anew has forgotten what it knew.
        self._confirmed &= {offer.info_hash for offer in mine.values()}
        for path, offer in mine.items():
            file, confirmed = self._files[path], offer.info_hash in self._confirmed
            if offer.stage == "relayed":
                if confirmed and self._announce(swarm, file, offer, "stopped"):
                    self._client.withdraw(offer.info_hash)
                    self._confirmed.discard(offer.info_hash)
            elif not confirmed and swarm.serves(file) and self._is_known(swarm, file, offer):
                self._client.confirm(offer.info_hash)
                self._confirmed.add(offer.info_hash)

    def _is_known(self, swarm: Swarm, file: File, offer: Offer) -> bool:
        """Whether the tracker of the exchange knows this host as a peer; an announcement of the peer's own takes a moment."""
        if file in self._hidden:
            return self._announce(swarm, file, offer, "started")
        return time.monotonic() - self._serving.setdefault(offer.info_hash, time.monotonic()) >= MOMENT

    def _announce(self, swarm: Swarm, file: File, offer: Offer, event: str) -> bool:
        """Speak for a peer that itself speaks to no tracker; whether the tracker has understood."""
        tracker = (self._address(self._site.exchange), self._site.tracker_port)
        return takes(announce(tracker, self._own, offer.info_hash, swarm.port(file), event))

    def _relay(self, swarm: Swarm, news: News) -> None:
        """As the relay of files: say how much of them is here."""
        mine = [path for path, offer in news.offers.items() if offer.relay == self._job.host]
        now = {path: self._had(swarm, self._files[path]) for path in mine}
        for path, had in now.items():
            if self._relayed.get(path) != had:
                self._client.advance(path, had)
        self._relayed = now

    def _had(self, swarm: Swarm, file: File) -> Had:
        with self._lock:
            wanted = file in self._wanted
        # A peer gives every piece as it comes, but lets hardly anybody in before it has the last one: with others earlier, hosts waited longer.
        return Had(swarm.received.get(file, 0), False) if wanted else Had(file.size, swarm.serves(file))

    def _follow(self, carrier: Carrier, news: News) -> None:
        """Serve and receive what is on offer, in an order of this host's own: so hosts have something to give each other from the beginning."""
        with self._lock:
            wanted, proved, rejected = set(self._wanted), set(self._proved), set(self._rejected)
            self._rejected.clear()
        if news.tracker != self._met:
            self._met, stranded = news.tracker, wanted
        else:
            stranded = set()
        for file in rejected | stranded:
            if file in carrier:
                carrier.drop(file)
        for path in sorted(news.offers, key=self._rank):
            file, offer = self._files[path], news.offers[path]
            hidden = offer.origin == self._job.host and offer.stage != "open"
            if file in self._hidden and not hidden:
                self._hidden.discard(file)
                if file in carrier:
                    carrier.drop(file)
            begins = file in proved or (file in wanted and (offer.relay == self._job.host or carrier.room(file)))
            if file not in carrier and begins:
                description = self._client.torrent(offer.info_hash) if offer.info_hash else b""
                address = self._address(news.tracker if offer.info_hash else offer.origin)
                if file in wanted:
                    carrier.receive(file, description, address)
                else:
                    self._serving.pop(offer.info_hash, None)
                    carrier.serve(file, description, "" if hidden else address)
                    self._hidden |= {file} if hidden else set()

    def _address(self, host: str) -> str:
        """Where this host reaches another, or itself."""
        return self._own if host == self._job.host and self._own else self._site.hosts[host].address

    def _offer_next(self, carrier: Carrier, news: News) -> bool:
        """As an origin: offer a file that nobody offers; whether there was one."""
        if self._job.host not in self._site.origins:
            return False
        with self._lock:
            pending = [file for file in self._proved if file.size and file.path not in news.offers]
        if not pending:
            return False
        file = min(pending, key=lambda file: self._rank(file.path))
        self._client.offer(file.path, carrier.describe(file))
        return True

    def _rank(self, path: str) -> bytes:
        """The place of a file in this host's order."""
        return hashlib.sha256(f"{self._job.host} {path}".encode()).digest()


def upload_limit(limits: Limits) -> int:
    """Bytes a second that this host may send just now: fewer where it serves a model."""
    limit = limits.upload_serving if limits.upload_serving and _serves() else limits.upload
    return min(filter(None, (limits.upload, limit)), default=0)


def _serves() -> bool:
    """Whether an instance of the model's service runs here."""
    return subprocess.run(["systemctl", "--quiet", "is-active", "vllm@*"], check=False).returncode == 0
