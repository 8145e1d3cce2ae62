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
from ansible_collections.h20.fleet.plugins.module_utils._weights.books import Books
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


def test_a_group_hears_of_what_its_leaders_tracker_knows(groups: Books) -> None:
    info_hash = serve(groups, LARGE, "a1")
    assert [groups.news(host).tracker for host in GROUPS] == ["a1", "a1", "a1", "b1"]
    assert [LARGE in groups.news(host).offers for host in GROUPS] == [True, True, True, False]
    groups.confirm("b1", info_hash)
    assert LARGE in groups.news("b2").offers


@pytest.mark.parametrize("end", ["silent", "failed"])
def test_a_group_without_its_leader_turns_to_the_exchanges_tracker(groups: Books, clock: Time, end: str) -> None:
    serve(groups, LARGE, "a1")
    groups.account("b1", account("failed" if end == "failed" else "receiving"))
    clock.now += module.SILENCE * (end == "silent")
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
        assert (offer.origin, b.torrent(offer.info_hash)) == ("a", torrent(path))
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
