# SPDX-License-Identifier: Apache-2.0
"""Hosts that spread a revision among them: by peers with real aria2, opentracker and mktorrent, by nginx over HTTP, where these are installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import books as books_module
from ansible_collections.h20.fleet.plugins.module_utils._weights import spread as module
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Limits
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import File
from ansible_collections.h20.fleet.plugins.module_utils._weights.progress import Progress
from ansible_collections.h20.fleet.plugins.module_utils._weights.spread import Spread, SpreadError
from ansible_collections.h20.fleet.plugins.module_utils._weights.swarm import Swarm
from unit.weights.sites import FILES, MANIFEST, PORTS, Neighbours
from unit.weights.support import CONTENT, LARGE, contents, one_bit

TOOLS = {"peer": ("aria2c", "opentracker", "mktorrent"), "http": ("nginx",)}
PATIENCE = 60


def installed(distribution: str) -> bool:
    path = f"{os.environ['PATH']}:/usr/sbin"
    return all(shutil.which(tool, path=path) for tool in TOOLS[distribution])


@pytest.fixture(params=["peer", "http"])
def distribution(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not installed(name):
        pytest.skip(f"{', '.join(TOOLS[name])} are not here")
    return name


@pytest.fixture
def peers() -> None:
    if not installed("peer"):
        pytest.skip(f"{', '.join(TOOLS['peer'])} are not here")


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that the servers' own users may enter as well, which pytest's are not."""
    # Where the tests run as root, opentracker and nginx give up that right.
    path = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def started(
    neighbours: Neighbours, host: str, distribution: str, *, full: bool = False, **limits: float
) -> Iterator[Spread]:
    """A host's part, begun; `full`: it has all files and offers them."""
    spread = Spread(neighbours.job(host, distribution, **limits), MANIFEST)
    try:
        spread.start(neighbours.tree(host, full=full))
        for file in MANIFEST.files if full else ():
            spread.offer(file)
        yield spread
    finally:
        spread.report(Progress(host, "complete"))
        spread.close()


@contextlib.contextmanager
def frozen(spread: Spread) -> Iterator[None]:
    """The host's peers hang."""
    carrier = spread._carrier  # noqa: SLF001 (processes are stopped from outside)
    assert isinstance(carrier, Swarm)
    processes = [peer.child._process for peer in carrier._peers if peer.child]  # noqa: SLF001
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def stages(spread: Spread, host: str, *, ready: bool = False) -> list[str]:
    """Of the offers that the exchange on this host shows to another, the stages; one that is ready becomes a relay."""
    books = spread._books  # noqa: SLF001 (what it would tell)
    assert books is not None
    return [offer.stage for offer in books.news(host, ready=ready).offers.values()]


def received(spread: Spread, *paths: str) -> list[str]:
    """What arrives, when these files are asked for."""
    arrived: list[File] = []
    stop = threading.Event()
    timer = threading.Timer(PATIENCE, stop.set)
    timer.start()
    spread.receive([FILES[path] for path in paths or FILES], arrived.append, stop)
    timer.cancel()
    assert not stop.is_set(), f"no more than {arrived} arrived"
    return sorted(file.path for file in arrived)


def listeners(neighbours: Neighbours) -> list[int]:
    """Ports of the site that somebody still listens on."""
    found = []
    for number, member in enumerate(neighbours.site["hosts"].values()):
        for port in range(neighbours.site["port"], neighbours.site["port"] + PORTS):
            with socket.socket() as caller:
                if caller.connect_ex((member["address"], port)) == 0:
                    found.append(number * 100000 + port)
    return found


def eventually(happens: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_all_bytes_reach_all_hosts_and_no_listener_stays(root: Path, distribution: str) -> None:
    neighbours = Neighbours(root, ["a", "b", "c"])
    with (
        started(neighbours, "a", distribution, full=True),
        started(neighbours, "b", distribution) as b,
        started(neighbours, "c", distribution) as c,
    ):
        for spread in (b, c):
            assert received(spread) == sorted(FILES)
    for host in "bc":
        assert contents(root / host / "tree") == CONTENT
    assert listeners(neighbours) == []


def test_what_was_wrong_is_got_again(root: Path, distribution: str) -> None:
    neighbours = Neighbours(root, ["a", "b"])
    with started(neighbours, "a", distribution, full=True), started(neighbours, "b", distribution) as b:
        received(b, LARGE)
        one_bit(root / "b/tree" / LARGE)
        b.reject(FILES[LARGE])
        assert received(b, LARGE) == [LARGE]
    assert (root / "b/tree" / LARGE).read_bytes() == CONTENT[LARGE]


def test_two_origins_give_each_other_their_parts(root: Path, distribution: str) -> None:
    neighbours = Neighbours(root, ["a", "b", "c"], origins=2)
    names = [path for path in FILES if FILES[path].size]
    parts = {"a": names[::2], "b": names[1::2]}
    with contextlib.ExitStack() as stack:
        spreads = {host: stack.enter_context(started(neighbours, host, distribution)) for host in "abc"}
        for host, part in parts.items():
            for path in part:
                target = root / host / "tree" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(CONTENT[path])
                spreads[host].offer(FILES[path])
        assert received(spreads["a"], *parts["b"]) == sorted(parts["b"])
        assert received(spreads["b"], *parts["a"]) == sorted(parts["a"])
        assert received(spreads["c"], *names) == sorted(names)


def test_files_are_served_from_where_they_have_moved(root: Path, distribution: str) -> None:
    neighbours = Neighbours(root, ["a", "b"])
    with started(neighbours, "a", distribution, full=True) as a, started(neighbours, "b", distribution) as b:
        (root / "a/tree").rename(root / "a/visible")
        a.moved(root / "a/visible")
        assert received(b) == sorted(FILES)


@pytest.mark.usefixtures("peers")
def test_a_group_gets_its_bytes_through_its_leader(root: Path) -> None:
    groups = {"a": "1", "b1": "2", "b2": "2"}
    neighbours = Neighbours(root, list(groups), groups=groups)
    with (
        started(neighbours, "a", "peer", full=True),
        started(neighbours, "b1", "peer") as leader,
        started(neighbours, "b2", "peer") as member,
    ):
        for spread in (leader, member):
            spread.report(Progress("", "receiving"))
        worker = threading.Thread(target=received, args=(leader,))
        worker.start()
        assert received(member) == sorted(FILES)
        worker.join()
    assert contents(root / "b2/tree") == CONTENT


@pytest.mark.usefixtures("peers")
def test_what_was_relayed_comes_without_its_origin(root: Path) -> None:
    neighbours = Neighbours(root, ["a", "b", "c"])
    with (
        started(neighbours, "a", "peer", full=True) as a,
        started(neighbours, "b", "peer") as b,
        started(neighbours, "c", "peer") as c,
    ):
        received(b)
        names = [path for path in FILES if FILES[path].size]
        assert eventually(lambda: stages(a, "c") == ["relayed"] * len(names))
        with frozen(a):
            assert received(c) == sorted(FILES)


@pytest.mark.usefixtures("peers")
def test_a_relay_that_does_nothing_keeps_nobody_waiting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books_module, "HESITATION", 2)
    neighbours = Neighbours(root, ["a", "b", "c"])
    with (
        started(neighbours, "a", "peer", full=True) as a,
        started(neighbours, "c", "peer") as c,
    ):
        assert eventually(lambda: stages(a, "b", ready=True) == ["first", "first"])
        assert received(c) == sorted(FILES)
        assert "open" in stages(a, "c")


@pytest.mark.usefixtures("peers")
def test_a_peer_that_dies_is_started_again(root: Path) -> None:
    neighbours = Neighbours(root, ["a", "b"])
    with started(neighbours, "a", "peer", full=True) as a, started(neighbours, "b", "peer") as b:
        assert received(b, LARGE) == [LARGE]
        carrier = a._carrier  # noqa: SLF001 (a process is killed from outside)
        assert isinstance(carrier, Swarm)
        for peer in carrier._peers:  # noqa: SLF001
            assert peer.child is not None
            peer.child._process.kill()  # noqa: SLF001
        rest = [path for path in FILES if path != LARGE]
        assert received(b, *rest) == sorted(rest)


@pytest.mark.usefixtures("peers")
def test_a_restarted_exchange_hears_of_all_files_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL", 0)  # it ends as a host does that reboots
    neighbours = Neighbours(root, ["a", "b"])
    with started(neighbours, "b", "peer") as b:
        with started(neighbours, "a", "peer", full=True):
            assert received(b, LARGE) == [LARGE]
        shutil.rmtree(root / "a")
        with started(neighbours, "a", "peer", full=True):
            rest = [path for path in FILES if path != LARGE]
            assert received(b, *rest) == sorted(rest)


@pytest.mark.usefixtures("peers")
def test_a_host_that_was_ended_goes_on_with_what_it_has(root: Path) -> None:
    neighbours = Neighbours(root, ["a", "b"])
    with started(neighbours, "a", "peer", full=True):
        with started(neighbours, "b", "peer") as b:
            received(b)
        tree = root / "b/tree"
        one_bit(tree / LARGE)
        tree.rename(root / "kept")
        with started(neighbours, "b", "peer") as b:
            (root / "b/tree").rmdir()
            (root / "kept").rename(tree)
            assert received(b, LARGE) == [LARGE]
        assert contents(tree) == CONTENT


def test_hosts_without_a_carrier_tell_the_exchange_how_far_they_are(tmp_path: Path) -> None:
    neighbours = Neighbours(tmp_path, ["a", "b"])
    with started(neighbours, "a", "shared") as a, started(neighbours, "b", "shared") as b:
        b.report(Progress("b", "proving", bytes=5))
        job = neighbours.job("a", "shared")
        assert eventually(lambda: job.hosts.exists() and '"proving"' in job.hosts.read_text())
        a.report(Progress("a", "complete"))
        b.report(Progress("b", "complete"))
        b.linger()
        a.linger()
    assert listeners(neighbours) == []


def test_a_failed_origin_stops_the_others_with_its_words(
    root: Path, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE", 0)
    neighbours = Neighbours(root, ["a", "b"])
    with started(neighbours, "a", distribution) as a, started(neighbours, "b", distribution) as b:
        a.report(Progress("a", "failed", error="the disk is full"))
        with pytest.raises(SpreadError, match="the origin a failed: the disk is full"):
            received(b)


def test_a_silent_exchange_is_given_up(root: Path, distribution: str) -> None:
    neighbours = Neighbours(root, ["a", "b"])
    with (
        started(neighbours, "b", distribution, give_up=1) as b,
        pytest.raises(SpreadError, match=r"the exchange 127.0.0.2:\d+ does not answer: .* -> see to the host a"),
    ):
        received(b)


@pytest.mark.usefixtures("peers")
def test_a_taken_port_is_refused_by_its_number(root: Path) -> None:
    neighbours = Neighbours(root, ["a", "b"])
    with socket.create_server(("127.0.0.2", neighbours.site["port"])), pytest.raises(SpreadError, match="model_port"):
        Spread(neighbours.job("a"), MANIFEST).start(neighbours.tree("a"))
    assert listeners(neighbours) == []


@pytest.mark.parametrize(
    ("upload", "serving", "serves", "expected"),
    [
        (0, 0, True, 0),
        (0, 5, True, 5),
        (0, 5, False, 0),
        (9, 5, True, 5),
        (9, 5, False, 9),
        (3, 5, True, 3),
        (9, 0, True, 9),
    ],
)
def test_a_host_that_serves_a_model_sends_less(
    monkeypatch: pytest.MonkeyPatch, upload: int, serving: int, serves: bool, expected: int
) -> None:
    monkeypatch.setattr(module, "_serves", lambda: serves)
    assert module.upload_limit(Limits(upload=upload, upload_serving=serving)) == expected
