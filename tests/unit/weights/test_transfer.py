# SPDX-License-Identifier: Apache-2.0
"""transfer: every fault of the way ends in the right bytes or in a refusal that names the source and why. Time passes only where it is waited for."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import proof
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Limits, Source
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import File
from ansible_collections.h20.fleet.plugins.module_utils._weights.transfer import (
    PARTS,
    STUMBLES,
    Pace,
    Transfer,
    TransferError,
)
from unit.plugins.hubs import Quiet, mirror
from unit.weights.support import CONTENT, LARGE, NAME, REMOTE, WEIGHTS, Hub, Skipped, contents, one_bit, write

#: Short where time really passes, in a silence of the other side; the rest is skipped.
LIMITS = Limits(stall=0.2, give_up=100)


class Trial:
    """A transfer of the revision into a folder, and what became of it. Each of `lies` is called at a proof, which then finds the bytes wrong."""

    def __init__(self, hub: Hub, root: Path, *sources: Source, limits: Limits = LIMITS) -> None:
        self.hub, self.root = hub, root
        self.clock = Skipped()
        self.stop = threading.Event()
        self.arrived: list[str] = []
        self.proofs: list[str] = []
        self.lies: list[Callable[[], None]] = []
        self.transfer = Transfer(hub.manifest, sources, limits, root, self._prove, self.stop, self.clock)

    def _prove(self, path: Path, file: File) -> str | None:
        self.proofs.append(file.path)
        if self.lies:
            self.lies.pop(0)()
            return f"{file.path} is wrong"
        return proof.difference(path, file)

    def run(self, *paths: str) -> None:
        files = [file for file in self.hub.manifest.files if not paths or file.path in paths]
        self.transfer.run(files, lambda file: self.arrived.append(file.path))

    def refused(self, *paths: str) -> str:
        """Why it fails; nothing that is not proved lies where files are looked for."""
        with pytest.raises(TransferError) as failed:
            self.run(*paths)
        for path in self.root.rglob("*"):
            if path.is_file() and PARTS not in path.parts:
                assert path.read_bytes() == CONTENT[str(path.relative_to(self.root))]
        return str(failed.value)

    @property
    def waited(self) -> float:
        return self.clock.seconds - Skipped().seconds


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@dataclasses.dataclass(frozen=True)
class Case:
    """What goes wrong at the hub with the large file, whether that is for good, and how it ends: with the right bytes or with a text."""

    kind: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    requests: int = 0  # how often the bytes are asked for at least
    waits: float = 0  # seconds that are waited at least
    sources: tuple[str, ...] = REMOTE

    def __str__(self) -> str:
        return f"{self.kind}-{'-'.join(map(str, self.options.values()))}"


ONCE = {"count": 1}
AGAIN = "then run the stage again: it resumes"
FAULTS = [
    Case("cut", {"bytes": 4000, "count": 2}, requests=3),
    Case("cut", {"bytes": 0, "count": 3}, requests=4, waits=3 * 0.5),
    Case("cut", {"bytes": 0}, f"no byte from any source for 100 s; .*the connection ends early, at byte 0 of {len(WEIGHTS)}.*{AGAIN}"),
    Case("truncate", ONCE, requests=2),
    Case("hang", ONCE, requests=2),
    Case("hang", {"count": 3}, requests=4),
    Case("silent", ONCE, requests=2),
    Case("silent", {}, f"no byte from any source for 100 s; .*: no byte for too long.*{AGAIN}"),
    Case("429", {"retry_after": 7, "count": 1}, requests=2, waits=7),
    Case("429", {"retry_after": 7, "count": 3}, requests=4, waits=21),
    Case("429", {"retry_after": 99999999}, f"no byte from any source for 100 s; .*HTTP 429.*{AGAIN}", waits=100),
    Case("503", {"retry_after": 7, "count": 1}, requests=2, waits=7),
    Case("500", {"count": 3, "retry_after": 0}, requests=4, waits=3 * 0.5),
    Case("500", {"retry_after": 0}, f"no byte from any source for 100 s; .*HTTP 500.*{AGAIN}", waits=100),
    Case("corrupt", ONCE, requests=2),
    Case("corrupt", {}, f"no source has {LARGE}: .*has sha256 .*, the manifest says .*{AGAIN}", requests=2),
    Case("wrong_size", {"bytes": 1}, f"it has {len(WEIGHTS) + 1} bytes, the manifest says {len(WEIGHTS)} -> .*{AGAIN}"),
    Case("wrong_size", {"bytes": -1}, f"it has {len(WEIGHTS) - 1} bytes, the manifest says {len(WEIGHTS)} -> .*{AGAIN}"),
    Case("missing", {}, f"no source has {LARGE}: .*HTTP 404: it has no such file or revision -> .*{AGAIN}"),
    Case("revised", {}, "HTTP 404: it has no such file or revision", sources=("hub", "http", "s3")),
    Case("expired", ONCE, requests=2, sources=("hub", "modelscope")),
    Case("expired", {}, "HTTP 403 behind a redirect: its address has expired", sources=("hub", "modelscope")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "kind"), [pytest.param(case, kind, id=f"{case}-{kind}") for case in FAULTS for kind in case.sources]
)
def test_a_fault_ends_in_the_right_bytes_or_in_a_refusal(hub: Hub, root: Path, case: Case, kind: str) -> None:
    trial = Trial(hub, root, hub.source(kind))
    hub.served.faults.set({f"*{LARGE}": {"kind": case.kind, **case.options}})
    if case.refusal:
        told = trial.refused(LARGE)
        assert f"{kind} {hub.url}" in told
        assert LARGE in told
        with pytest.raises(TransferError, match=case.refusal):
            raise TransferError(told)
        hub.served.faults.clear()
        trial = Trial(hub, root, hub.source(kind))
        trial.run()
    else:
        trial.run()
        assert hub.asked(f"*{LARGE}") >= case.requests
        assert trial.waited >= case.waits
    assert sorted(trial.arrived) == sorted(CONTENT)
    assert {path: data for path, data in contents(trial.root).items() if PARTS not in path} == CONTENT


def test_each_file_is_asked_for_once_and_proved_once(hub: Hub, root: Path) -> None:
    trial = Trial(hub, root, hub.source("http"))
    trial.run()
    assert contents(root) == CONTENT
    assert sorted(trial.arrived) == sorted(trial.proofs) == sorted(CONTENT)
    assert hub.asked("*") == len(CONTENT)
    assert trial.transfer.received == sum(map(len, CONTENT.values()))
    assert trial.transfer.source == f"http {hub.url}/files"
    assert (trial.waited, trial.transfer.trouble) == (0, "")


@pytest.mark.parametrize("kind", REMOTE)
def test_no_byte_that_came_is_asked_for_again(hub: Hub, root: Path, kind: str) -> None:
    hub.served.faults.set({f"*{LARGE}": {"kind": "cut", "bytes": 3000, "count": 3}})
    trial = Trial(hub, root, hub.source(kind))
    trial.run(LARGE)
    assert trial.transfer.received == len(WEIGHTS)


def test_what_an_earlier_run_has_left_is_gone_on_with(hub: Hub, root: Path) -> None:
    write(root / PARTS, {LARGE: WEIGHTS[:5000], "config.json": b"x" * 99})
    trial = Trial(hub, root, hub.source("http"))
    trial.run(LARGE, "config.json")
    assert trial.transfer.received == len(WEIGHTS) - 5000 + len(CONTENT["config.json"])


def test_what_is_there_whole_is_proved_without_a_request(hub: Hub, root: Path) -> None:
    write(root / PARTS, {LARGE: WEIGHTS})
    trial = Trial(hub, root, hub.source("http"))
    trial.run(LARGE)
    assert (hub.asked("*"), trial.arrived) == (0, [LARGE])


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * len(WEIGHTS)])
def test_wrong_bytes_of_an_earlier_run_are_forgotten(hub: Hub, root: Path, left: bytes) -> None:
    write(root / PARTS, {LARGE: left})
    trial = Trial(hub, root, hub.source("http"))
    trial.run(LARGE)
    assert (root / LARGE).read_bytes() == WEIGHTS


def test_a_second_source_goes_on_from_the_byte_where_the_first_was_lost(hub: Hub, root: Path) -> None:
    write(root / PARTS, {LARGE: WEIGHTS[:4000]})
    hub.served.faults.set({f"/files/*{LARGE}": "500"})
    trial = Trial(hub, root, hub.source("http"), hub.source("s3"))
    trial.run(LARGE)
    assert trial.transfer.received == len(WEIGHTS) - 4000
    assert hub.asked(f"/files/*{LARGE}") == hub.asked(f"/public/*{LARGE}") == 1


def test_a_source_without_ranges_loses_nothing_that_is_there(hub: Hub, root: Path) -> None:
    write(root / PARTS, {LARGE: WEIGHTS[:4000]})
    write(root.with_name("plain") / NAME / hub.revision, CONTENT)
    with mirror(root.with_name("plain")) as url:  # the standard library's server knows none
        trial = Trial(hub, root, Source("http", url))
        trial.run(LARGE)
    assert trial.transfer.received == len(WEIGHTS) - 4000


def test_a_source_that_falls_silent_in_mid_file_is_left_for_the_next(hub: Hub, root: Path) -> None:
    hub.served.faults.set({f"/files/*{LARGE}": "hang"})
    trial = Trial(hub, root, hub.source("http"), hub.source("s3"))
    trial.run(LARGE)
    assert trial.transfer.received == len(WEIGHTS)
    assert hub.asked(f"/files/*{LARGE}") == hub.asked(f"/public/*{LARGE}") == 1


def test_what_the_first_source_lacks_comes_from_the_next(hub: Hub, root: Path) -> None:
    hub.served.faults.set({f"/files/*{LARGE}": "missing"})
    trial = Trial(hub, root, hub.source("http"), hub.source("s3"))
    trial.run()
    assert contents(root) == CONTENT
    assert (hub.asked("/files/*"), hub.asked("/public/*")) == (len(CONTENT), 1)
    assert trial.waited == 0


def test_wrong_bytes_come_once_more_and_then_from_the_next_source(hub: Hub, root: Path) -> None:
    folder = root.with_name("usb")
    write(folder, CONTENT)
    one_bit(folder / LARGE)
    trial = Trial(hub, root, Source("path", str(folder)), hub.source("http"))
    trial.run(LARGE)
    assert trial.proofs == [LARGE] * 3
    assert trial.transfer.received == 3 * len(WEIGHTS)
    assert hub.asked("*") == 1


def test_a_source_that_has_to_give_all_alone_may_not_stumble_for_ever(hub: Hub, root: Path) -> None:
    trial = Trial(hub, root, hub.source("http"), hub.source("s3"), limits=dataclasses.replace(LIMITS, give_up=10000))
    trial.lies.append(lambda: hub.served.faults.set({"/files/*": "500"}))
    trial.run(LARGE)
    assert (hub.asked(f"/files/*{LARGE}"), hub.asked(f"/public/*{LARGE}")) == (1 + STUMBLES, 1)
    assert trial.transfer.received == 2 * len(WEIGHTS)


def test_after_wrong_bytes_no_source_goes_on_where_another_stood(hub: Hub, root: Path) -> None:
    trial = Trial(hub, root, hub.source("http"), hub.source("s3"))
    trial.lies.append(lambda: hub.served.faults.set({"/files/*": {"kind": "cut", "bytes": 4000, "count": 1}}))
    trial.run(LARGE)
    assert (hub.asked(f"/files/*{LARGE}"), hub.asked(f"/public/*{LARGE}")) == (3, 0)
    assert trial.transfer.received == 2 * len(WEIGHTS)


def test_every_source_is_named_with_its_reason(hub: Hub, root: Path) -> None:
    hub.served.faults.set({f"/files/*{LARGE}": "missing", f"/public/*{LARGE}": {"kind": "wrong_size", "bytes": 1}})
    told = Trial(hub, root, hub.source("http"), hub.source("s3")).refused(LARGE)
    assert told.startswith(
        f"no source has {LARGE}: http {hub.url}/files: HTTP 404: it has no such file or revision;"
        f" s3 {hub.url}/public/models: it has {len(WEIGHTS) + 1} bytes, the manifest says {len(WEIGHTS)} -> correct fleet_model_sources"
    )


def test_a_source_that_wants_rest_is_not_asked_for_any_file(hub: Hub, root: Path) -> None:
    hub.served.faults.set({"/files/*": {"kind": "429", "retry_after": 500, "count": 1}})
    trial = Trial(hub, root, hub.source("http"), hub.source("s3"))
    trial.run(LARGE)
    trial.run()
    assert (hub.asked("/files/*"), hub.asked("/public/*")) == (1, 1 + len(CONTENT))


def test_rests_grow_to_a_minute_and_end_with_the_first_byte(hub: Hub, root: Path) -> None:
    hub.served.faults.set({"*": {"kind": "500", "retry_after": 0, "count": 10}})
    trial = Trial(hub, root, hub.source("http"), limits=dataclasses.replace(LIMITS, give_up=1000))
    trial.run(LARGE)
    longest = [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert sum(longest) / 2 <= trial.waited <= sum(longest)
    hub.served.faults.set({"*": {"kind": "500", "retry_after": 0, "count": 1}})
    before = trial.waited
    trial.run("config.json")
    assert 0.5 <= trial.waited - before <= 1


def test_while_no_byte_comes_it_is_told_why(hub: Hub, root: Path) -> None:
    hub.served.faults.set({"*": "500"})
    trial = Trial(hub, root, hub.source("http"))
    trial.refused(LARGE)
    assert trial.transfer.trouble == f"{LARGE}: http {hub.url}/files: HTTP 500"


def test_the_first_failure_ends_the_rest(hub: Hub, root: Path) -> None:
    hub.served.faults.set({f"*{LARGE}": "silent", "*config.json": "missing"})
    trial = Trial(hub, root, hub.source("http"), limits=dataclasses.replace(LIMITS, give_up=1e9))
    assert trial.refused().startswith("no source has config.json: ")
    assert trial.stop.is_set()


def test_a_transfer_that_is_stopped_ends_without_an_error(hub: Hub, root: Path) -> None:
    trial = Trial(hub, root, hub.source("http"))
    trial.stop.set()
    trial.run()
    assert (trial.arrived, hub.asked("*")) == ([], 0)


def test_an_endless_answer_is_not_written_to_the_disk(hub: Hub, root: Path) -> None:
    class Endless(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(HTTPStatus.OK)
            self.end_headers()
            self.wfile.write(WEIGHTS * 2)

    with mirror(root, Endless) as url:
        told = Trial(hub, root, Source("http", url)).refused(LARGE)
    assert f"it has more bytes than the {len(WEIGHTS)} that the manifest says" in told
    assert (root / PARTS / LARGE).stat().st_size <= len(WEIGHTS)


@pytest.mark.parametrize("connections", [1, 2])
def test_no_more_connections_than_allowed(hub: Hub, root: Path, connections: int) -> None:
    lock, open_now, most = threading.Lock(), [0], [0]

    class Counting(Quiet):
        def do_GET(self) -> None:  # noqa: N802
            with lock:
                open_now[0] += 1
                most[0] = max(most[0], open_now[0])
            threading.Event().wait(0.05)
            with lock:
                open_now[0] -= 1
            super().do_GET()

    folder = root.with_name("plain")
    write(folder / NAME / hub.revision, CONTENT)
    with mirror(folder, Counting) as url:
        Trial(hub, root, Source("http", url), limits=dataclasses.replace(LIMITS, connections=connections)).run()
    assert most == [connections]


def test_all_connections_together_keep_the_pace() -> None:
    clock = Skipped()
    pace = Pace(100, clock)
    assert [pace.delay(50), pace.delay(50), pace.delay(100)] == [0.5, 1, 2]
    clock.seconds += 1
    assert pace.delay(50) == 1.5
    clock.seconds += 10
    assert pace.delay(10) == pytest.approx(0.1)
    assert Pace(0, clock).delay(1 << 40) == 0


def test_a_transfer_takes_as_long_as_its_limit_says(hub: Hub, root: Path) -> None:
    trial = Trial(hub, root, hub.source("http"), limits=dataclasses.replace(LIMITS, download=100))
    trial.run(LARGE)
    assert trial.waited == pytest.approx(len(WEIGHTS) / 100)


def test_a_source_that_could_never_answer_is_refused_before_the_first_request(hub: Hub, root: Path) -> None:
    trial = Trial(hub, root, hub.source("http"), Source("ftp", "ftp://x"))
    assert trial.refused().endswith("-> correct fleet_model_sources, then run the stage again")
    assert hub.asked("*") == 0
    trial.transfer.run([], lambda _file: None)  # nor where nothing is missing


def test_without_any_source_nothing_can_be_had(hub: Hub, root: Path) -> None:
    assert Trial(hub, root).refused(LARGE).startswith(f"no source has {LARGE}: ")
