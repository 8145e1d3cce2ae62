# SPDX-License-Identifier: Apache-2.0
"""The exchange: what a host may fetch, from whose tracker, and when nobody needs anybody any more."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import books as module
from ansible_collections.h20.fleet.plugins.module_utils._weights import exchange as server
from ansible_collections.h20.fleet.plugins.module_utils._weights.books import Books, Had
from ansible_collections.h20.fleet.plugins.module_utils._weights.exchange import Client, Exchange, ExchangeError
from unit.weights.sites import FILES, MANIFEST, Neighbours
from unit.weights.support import LARGE

GROUPS = {"a1": "a", "a2": "a", "b1": "b", "b2": "b"}


class Time:
    """Time that passes where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def torrent(path: str) -> bytes:
    """As mktorrent writes it, as far as the exchange looks at it."""
    name = Path(path).name.encode()
    info = b"d6:lengthi%de4:name%d:%s12:piece lengthi262144e6:pieces3:abc7:privatei1ee"
    return b"d10:created by4:test4:info" + info % (FILES[path].size, len(name), name) + b"e"


def account(phase: str = "receiving", **more: Any) -> dict[str, Any]:
    return {"phase": phase, "bytes": 1, "error": ""} | more


@pytest.fixture
def groups(tmp_path: Path, clock: Time) -> Books:  # noqa: ARG001 (from the beginning)
    """Two racks: a1 is the exchange and leads its own, b1 leads the other."""
    return Books(Neighbours(tmp_path, list(GROUPS), groups=GROUPS).job("a1", give_up=600), MANIFEST, None)


@pytest.fixture
def site(tmp_path: Path, clock: Time) -> Books:  # noqa: ARG001 (from the beginning)
    """Three hosts that lack everything, and `a` that has it; nobody is told apart by a group."""
    return Books(Neighbours(tmp_path, ["a", "b", "c", "d"]).job("a", give_up=600), MANIFEST, None)


def test_an_offer_is_on_the_tracker_before_anybody_hears_of_it(tmp_path: Path) -> None:
    heard: list[object] = []
    books = Books(
        Neighbours(tmp_path, ["a", "b"]).job("a"), MANIFEST, lambda _hash: heard.append(dict(books.news("b").offers))
    )
    books.offer(LARGE, "a", torrent(LARGE))
    assert heard == [{}]
    assert LARGE not in books.news("b").offers
    books.confirm("a", books.news("a").offers[LARGE].info_hash)
    assert books.news("b").offers[LARGE].origin == "a"


def test_what_is_no_torrent_of_the_file_is_not_offered(groups: Books) -> None:
    for content in (b"x", torrent(LARGE).replace(b"privatei1e", b"privatei0e"), torrent("config.json")):
        with pytest.raises(ValueError, match="no private torrent of"):
            groups.offer(LARGE, "a1", content)
    with pytest.raises(KeyError):
        groups.offer("another", "a1", torrent(LARGE))
    assert not groups.news("a2").offers


def serve(books: Books, path: str, origin: str) -> str:
    """Have an origin offer and serve a file; its hash."""
    books.offer(path, origin, torrent(path))
    info_hash = books.news(origin).offers[path].info_hash
    books.confirm(origin, info_hash)
    return info_hash


WHOLE = Had(FILES[LARGE].size, gives=True)


def seen(books: Books, *hosts: str) -> dict[str, str]:
    """The stage of the large file's offer, by those of the hosts that are shown it."""
    news = {host: books.news(host).offers for host in hosts}
    return {host: offers[LARGE].stage for host, offers in news.items() if LARGE in offers}


def relayed(books: Books, host: str, origin: str) -> None:
    """Let the host be the large file's relay, from its origin's first confirmation to its withdrawal."""
    info_hash = serve(books, LARGE, origin)
    assert books.news(host).offers[LARGE].relay == host
    books.advance(host, LARGE, WHOLE)
    books.withdraw(origin, info_hash)


def test_an_origin_gives_a_file_to_one_host_and_the_others_get_it_there(site: Books) -> None:
    info_hash = serve(site, LARGE, "a")
    assert seen(site, "b", "c", "d", "a") == {"b": "first", "a": "first"}
    site.advance("c", LARGE, WHOLE)  # it is no relay of it
    site.advance("b", LARGE, Had(FILES[LARGE].size))
    assert seen(site, "a", "b", "c") == {"a": "first", "b": "first"}
    site.advance("b", LARGE, WHOLE)
    # Who asked the tracker before the origin has left it would call the origin.
    assert seen(site, "a", "b", "c") == {"a": "relayed", "b": "relayed"}
    site.withdraw("a", info_hash)
    assert seen(site, "a", "b", "c", "d") == dict.fromkeys("abcd", "relayed")


def test_relays_are_dealt_to_those_who_ask_so_that_each_has_its_share(
    site: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RELAYED", 1)
    monkeypatch.setattr(module, "FEWEST", 3)
    paths = [path for path in FILES if FILES[path].size]
    for path in paths:
        serve(site, path, "a")
    assert not site.news("b", ready=False).offers
    [first] = site.news("b").offers
    [second] = site.news("c").offers
    [third] = site.news("d").offers
    assert {first, second, third} < set(paths)
    assert [len(site.news(host).offers) for host in "bcd"] == [1, 1, 1]
    site.advance("b", first, Had(FILES[first].size))  # what has arrived takes nothing of the origin's link any more
    assert len(site.news("b").offers) == 2


@pytest.mark.parametrize("end", ["silent or stuck", "failed", "started anew"])
@pytest.mark.parametrize("part", [0, 1])
def test_nobody_waits_for_a_relay_that_is_of_no_use(site: Books, clock: Time, end: str, part: int) -> None:
    info_hash = serve(site, LARGE, "a")
    site.news("b")
    clock.now += module.HESITATION
    site.advance("b", LARGE, Had(part))
    assert seen(site, "c") == {}
    if end == "failed":
        site.account("b", account("failed"))
    elif end == "started anew":
        site.begin("b")
    else:
        clock.now += module.HESITATION + 1
    assert seen(site, "a", "b", "c", "d") == dict.fromkeys("abcd", "open")
    site.advance("b", LARGE, WHOLE)  # too late, and of no harm
    assert site.news("c").offers[LARGE].relay == ""
    assert info_hash == site.news("c").offers[LARGE].info_hash


@pytest.mark.parametrize("end", ["silent", "failed", "started anew", "found to be wrong there"])
def test_a_relay_that_is_lost_brings_the_origin_back(site: Books, clock: Time, end: str) -> None:
    relayed(site, "b", "a")
    site.account("b", account())
    assert seen(site, "c", "d") == dict.fromkeys("cd", "relayed")
    if end == "silent":
        clock.now += module.SILENCE + 1
    elif end == "failed":
        site.account("b", account("failed"))
    elif end == "started anew":
        site.begin("b")
    else:
        site.advance("b", LARGE, Had())
    assert seen(site, "a", "b", "c") == {"a": "open"}
    site.confirm("a", site.news("a").offers[LARGE].info_hash)
    assert seen(site, "b", "c", "d") == dict.fromkeys("bcd", "open")


def test_a_late_host_gets_what_was_relayed_before_it_came(site: Books, clock: Time) -> None:
    relayed(site, "b", "a")
    clock.now += module.SILENCE / 2
    site.account("b", account())
    clock.now += module.SILENCE / 2
    site.begin("d")
    assert seen(site, "d") == {"d": "relayed"}


def test_a_failed_origin_need_not_withdraw(tmp_path: Path, clock: Time) -> None:
    books = Books(Neighbours(tmp_path, ["a", "b", "c", "d"], origins=2).job("a"), MANIFEST, None)
    serve(books, LARGE, "b")
    assert books.news("c").offers[LARGE].relay == "c"
    books.advance("c", LARGE, WHOLE)
    assert seen(books, "a", "d") == {}
    clock.now += 1
    books.account("b", account("failed"))
    assert seen(books, "a", "d") == dict.fromkeys("ad", "relayed")


def test_a_started_origin_is_among_the_peers_when_it_says_so_again(site: Books) -> None:
    serve(site, LARGE, "a")
    site.begin("a")
    assert seen(site, "b", "c") == {}
    site.confirm("a", site.news("a").offers[LARGE].info_hash)
    assert seen(site, "b", "c") == {"b": "first"}


def test_files_over_http_are_for_all_at_once(tmp_path: Path) -> None:
    books = Books(Neighbours(tmp_path, ["a", "b", "c"]).job("a", "http"), MANIFEST, None)
    books.offer(LARGE, "a", b"")
    assert seen(books, "b", "c") == dict.fromkeys("bc", "open")


def test_a_group_hears_of_what_its_leaders_tracker_knows(groups: Books) -> None:
    info_hash = serve(groups, LARGE, "a1")
    assert [groups.news(host).tracker for host in ("b2", "b1", "a2", "a1")] == ["b1", "a1", "a1", "a1"]
    assert seen(groups, *GROUPS) == {"a1": "first", "b1": "first"}
    # Who is led by the relay gets each piece as it comes there.
    groups.introduce("b1", info_hash)
    assert seen(groups, *GROUPS) == {"a1": "first", "b1": "first", "b2": "first"}
    groups.advance("b1", LARGE, WHOLE)
    groups.withdraw("a1", info_hash)
    assert seen(groups, *GROUPS) == dict.fromkeys(GROUPS, "relayed")


@pytest.mark.parametrize("end", ["silent", "failed"])
def test_a_group_without_its_leader_turns_to_the_exchanges_tracker(groups: Books, clock: Time, end: str) -> None:
    relayed(groups, "a2", "a1")
    groups.account("b1", account("failed" if end == "failed" else "receiving"))
    clock.now += module.SILENCE * (end == "silent")
    groups.account("a2", account())
    news = groups.news("b2")
    assert (news.tracker, list(news.offers)) == ("a1", [LARGE])


def test_the_failure_of_an_origin_is_told_with_its_words(groups: Books) -> None:
    groups.account("a2", account("failed", error="of no matter: it is no origin"))
    assert groups.news("b1").failed == {}
    groups.account("a1", account("failed", error="the disk is full"))
    assert groups.news("b1").failed == {"a1": "the disk is full"}


def test_a_host_is_needed_until_all_are_complete_or_failed_or_silent_for_too_long(groups: Books, clock: Time) -> None:
    assert groups.account("a1", account("complete"))
    assert groups.account("a2", account("complete"))
    assert groups.account("b1", account("failed"))
    assert not groups.finished()
    clock.now += 601  # b2 has never said a word
    assert not groups.account("a2", account("complete"))
    assert groups.finished()


def test_the_exchange_ends_when_all_that_are_still_there_know_it(groups: Books, clock: Time) -> None:
    for host in GROUPS:
        needed = groups.account(host, account("complete"))
    assert not needed  # the last one heard it at once
    assert not groups.all_told()
    groups.account("a2", account("complete"))
    assert not groups.all_told()
    clock.now += module.SILENCE  # b1 is gone
    groups.account("a2", account("complete"))
    assert groups.all_told()


def test_all_know_of_the_exchanges_own_failure_before_it_ends(groups: Books) -> None:
    for host in ("a2", "b1"):
        groups.account(host, account())
    groups.account("a1", account("failed", error="refused"))
    groups.news("a2")
    assert not groups.all_told()
    groups.news("b1")
    assert groups.all_told()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Neighbours]:
    """A site of two whose exchange is up."""
    neighbours = Neighbours(tmp_path, ["a", "b"])
    job = neighbours.job("a")
    job.state.mkdir()
    exchange = Exchange(job, Books(job, MANIFEST, None))
    yield neighbours
    exchange.close()
    with pytest.raises(ExchangeError, match="does not answer"):
        client(neighbours, "b").news()


def client(neighbours: Neighbours, host: str) -> Client:
    site = neighbours.job(host).site
    assert site is not None
    return Client(site, host)


def test_hosts_trade_through_it(served: Neighbours) -> None:
    a, b = client(served, "a"), client(served, "b")
    for path in (LARGE, "a name/with %20 and ü.txt"):
        a.offer(path, torrent(path))
        a.confirm(a.news().offers[path].info_hash)
        offer = b.news().offers[path]
        assert (offer.origin, offer.relay, b.torrent(offer.info_hash)) == ("a", "b", torrent(path))
        b.advance(path, Had(FILES[path].size, gives=True))
        a.withdraw(offer.info_hash)
        assert b.news().offers[path].stage == "relayed"
    b.begin()
    assert b.news().offers == {}
    assert {offer.stage for offer in a.news().offers.values()} == {"open"}
    assert b.report(account("complete", bytes=7)) is True
    assert a.report(account("complete", bytes=8)) is False
    assert a.news().bytes == 15


def test_the_controller_finds_all_accounts_in_a_file(served: Neighbours) -> None:
    job = served.job("a")
    client(served, "b").report(account("failed", error="x"))
    expected = {"hosts": {"a": None, "b": account("failed", error="x")}, "files": len(FILES), "offered": 0}
    for _attempt in range(100):
        if job.hosts.exists() and json.loads(job.hosts.read_text()) == expected:
            return
        threading.Event().wait(0.05)
    pytest.fail(f"{job.hosts.read_text()} instead of {expected}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/offers?host=stranger", None, 404),
        ("GET", "/torrents/ab", None, 404),
        ("GET", "/etc/passwd", None, 404),
        ("POST", "/hosts/stranger", b"{}", 404),
        ("POST", "/hosts/b", b"no JSON", 400),
        ("PUT", f"/offers/{LARGE}?host=a", b"no torrent", 400),
        ("PUT", f"/offers/{LARGE}?host=stranger", b"", 404),
        ("PUT", f"/relays/{LARGE}?host=b", b'{"has": 1}', 400),
        ("DELETE", "/hosts/b", None, 501),
    ],
)
def test_it_refuses_what_it_does_not_know(
    served: Neighbours, method: str, path: str, body: bytes | None, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.2", served.site["port"], timeout=10)
    connection.request(method, path, body)
    with contextlib.closing(connection), connection.getresponse() as answer:
        assert answer.status == status


def test_it_answers_the_hosts_of_the_site_alone(served: Neighbours, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every loopback address is this host itself; so the caller's is replaced.
    monkeypatch.setattr(server._Server, "knows", lambda self, _address: known(self, "10.9.9.9"))  # noqa: SLF001
    with pytest.raises(ExchangeError, match="is no address of this site's hosts"):
        client(served, "b").news()


def known(exchange: Any, address: str, check: Any = server._Server.knows) -> bool:  # noqa: SLF001
    answer: bool = check(exchange, address)
    return answer
