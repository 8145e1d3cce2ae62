# SPDX-License-Identifier: Apache-2.0
"""fetch: a revision from its first byte to its name, whatever happens to the host or comes from the others. Faults of the way are in test_transfer."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import disk, proof
from ansible_collections.h20.fleet.plugins.module_utils._weights import fetch as program
from ansible_collections.h20.fleet.plugins.module_utils._weights.fetch import FetchError, fetch, inspect, prove
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import File, Manifest
from ansible_collections.h20.fleet.plugins.module_utils._weights.progress import Progress
from ansible_collections.h20.fleet.plugins.module_utils._weights.spread import SpreadError
from unit.weights.support import CONTENT, LARGE, WEIGHTS, Hub, Place, contents, manifest_of, one_bit, write

TOTAL = sum(map(len, CONTENT.values()))
SPOILED = [LARGE, "sub/deep/notes.txt"]


def told(place: Place) -> dict[str, Any]:
    """What the host says of itself."""
    progress: dict[str, Any] = json.loads(place.job().progress.read_text())
    return progress


def refused(job: Job) -> str:
    """Why a fetch fails; it says so to others as well."""
    with pytest.raises(FetchError) as failed:
        fetch(job)
    return str(failed.value)


def test_a_revision_becomes_visible_whole_and_readable(hub: Hub, place: Place) -> None:
    job = place.job()
    fetch(job)
    assert contents(place.destination) == CONTENT
    assert not job.partial.exists()
    assert proof.is_complete(job)
    below = list(place.destination.rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in below if path.is_file()} == {0o644}
    assert {path.stat().st_mode & 0o777 for path in (place.destination, *below) if path.is_dir()} == {0o755}
    progress = told(place)
    assert (progress["phase"], progress["bytes"], progress["total"], progress["origin"]) == ("complete", *[TOTAL] * 3)
    assert hub.asked("/*/resolve/*") == len(CONTENT)


def test_a_complete_revision_asks_nobody(hub: Hub, place: Place) -> None:
    fetch(place.job())
    asked = hub.asked("*")
    fetch(place.job(sources=[]))
    assert hub.asked("*") == asked
    progress = told(place)
    assert (progress["phase"], progress["bytes"], progress["origin"]) == ("complete", TOTAL, 0)


@pytest.mark.parametrize("damage", [Path.unlink, one_bit, lambda path: path.write_bytes(b"short")])
def test_a_torn_revision_is_repaired_by_what_is_wrong_alone(
    hub: Hub, place: Place, damage: Callable[[Path], None]
) -> None:
    job = place.job()
    fetch(job)
    asked = hub.asked("/*/resolve/*")
    kept = {path: (place.destination / path).stat().st_ino for path in CONTENT if path not in SPOILED}
    for path in SPOILED:
        damage(place.destination / path)
    fetch(job)
    assert hub.asked("/*/resolve/*") == asked + len(SPOILED)
    assert contents(place.destination) == CONTENT
    assert proof.is_complete(job)
    assert {path: (place.destination / path).stat().st_ino for path in kept} == kept


def test_a_flipped_byte_that_its_time_hides_is_found_by_rereading(place: Place) -> None:
    job = place.job()
    fetch(job)
    prove(job)
    path = place.destination / LARGE
    times = path.stat()
    one_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert proof.is_complete(job)
    with pytest.raises(FetchError, match=rf"{place.destination}: {LARGE} has sha256 .* -> run the stage again"):
        prove(job)
    assert not proof.is_complete(job)
    fetch(job)
    prove(job)


def test_what_an_earlier_try_has_left_is_proved_and_kept(hub: Hub, place: Place) -> None:
    job = place.job()
    write(job.partial, {LARGE: WEIGHTS, "config.json": b'{"a": 2}\n', f"{LARGE}.aria2": b"x", ".cache/old": b"x"})
    fetch(job)
    assert contents(place.destination) == CONTENT
    assert hub.asked(f"*{LARGE}") == 0


def test_what_was_copied_by_hand_beside_the_partial_one_is_replaced(place: Place) -> None:
    job = place.job()
    write(job.partial, {LARGE: WEIGHTS})
    write(place.destination, {LARGE: b"unproved"})
    fetch(job)
    assert contents(place.destination) == CONTENT
    assert [path.name for path in place.destination.parent.iterdir()] == [place.destination.name]


def test_a_source_with_other_bytes_is_named_and_nothing_becomes_visible(hub: Hub, place: Place) -> None:
    one_bit(hub.folder / LARGE)
    message = refused(place.job())
    assert message.startswith(f"no source has {LARGE}: hub {hub.url}: {LARGE} has sha256 ")
    assert not place.destination.exists()
    progress = told(place)
    assert (progress["phase"], progress["error"]) == ("failed", message)
    assert 0 < progress["bytes"] < TOTAL


def test_a_torn_revision_that_cannot_be_repaired_is_not_visible_either(hub: Hub, place: Place) -> None:
    fetch(place.job())
    for root in (place.destination, hub.folder):
        one_bit(root / "config.json")
    assert "no source has config.json" in refused(place.job())
    assert not place.destination.exists()


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ({}, TOTAL),
        ({LARGE: WEIGHTS}, TOTAL - len(WEIGHTS)),
        ({LARGE: WEIGHTS[:4096]}, TOTAL - 4096),
        ({f".parts/{LARGE}": WEIGHTS[:4096]}, TOTAL - 4096),
        (CONTENT, 0),
    ],
)
@pytest.mark.parametrize("folder", ["partial", "destination"])
def test_inspection_counts_what_is_still_to_come(
    place: Place, folder: str, present: dict[str, bytes], missing: int
) -> None:
    job = place.job()
    write(getattr(job, folder), present)
    state = inspect(job)
    assert (state["complete"], state["altered"]) == (False, [str(job.destination)])
    assert (state["missing_bytes"], state["destination"]) == (missing, str(job.destination))
    assert 0 < state["free_bytes"] <= shutil.disk_usage(place.root).total


def test_a_file_with_holes_counts_by_what_is_there(place: Place) -> None:
    job = place.job()
    write(job.partial, {LARGE: b""})
    os.truncate(job.partial / LARGE, len(WEIGHTS))
    assert inspect(job)["missing_bytes"] == TOTAL


def test_inspection_of_a_complete_revision(place: Place) -> None:
    fetch(place.job())
    state = inspect(place.job())
    assert (state["complete"], state["altered"], state["missing_bytes"]) == (True, [], 0)
    one_bit(place.destination / LARGE)
    assert inspect(place.job())["altered"] == [LARGE]


def test_a_second_run_of_the_same_job_is_kept_out(place: Place) -> None:
    job = place.job()
    job.state.mkdir()
    with program._only_one(job):  # noqa: SLF001 (what a run in another process does)
        assert f"another run fetches {job.destination} already" in refused(job)
    fetch(job)


# Disks


@pytest.fixture
def small_disk(place: Place) -> Iterator[Path]:
    """A filesystem of 64 KiB for the models."""
    models = place.root / "models"
    models.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(models)], check=False)
    if mounted.returncode:
        pytest.skip("no filesystem may be mounted here")
    try:
        yield models
    finally:
        subprocess.run(["umount", str(models)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_too_little_room_is_told_before_the_first_byte(hub: Hub, place: Place, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(56 * 1024))
    message = refused(place.job())
    assert message.startswith(f"the filesystem of {place.job().partial} has ")
    assert f"{TOTAL} bytes are missing, 5% is margin -> make room there" in message
    assert hub.asked("*") == 0
    (small_disk / "ballast").unlink()
    fetch(place.job())
    assert contents(place.destination) == CONTENT


def test_a_disk_that_fills_on_the_way_is_told_and_the_next_run_goes_on(
    place: Place, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "check_room", lambda *_: None)
    (small_disk / "ballast").write_bytes(bytes(44 * 1024))
    message = refused(place.job())
    assert message.endswith(f"{os.strerror(errno.ENOSPC)} -> make room there, then run the stage again: it resumes")
    assert told(place)["phase"] == "failed"
    assert not place.destination.exists()
    (small_disk / "ballast").unlink()
    fetch(place.job())
    assert contents(place.destination) == CONTENT
    assert told(place)["origin"] < TOTAL


def test_a_disk_that_cannot_be_written_is_told(place: Place, small_disk: Path) -> None:
    remount(small_disk, "ro")
    message = refused(place.job())
    assert os.strerror(errno.EROFS) in message
    assert "-> mount it writable" in message
    remount(small_disk, "rw")
    fetch(place.job())
    assert contents(place.destination) == CONTENT


# A revision on a shared filesystem


@pytest.fixture
def shared(place: Place) -> dict[str, Any]:
    return {"distribution": "shared", "stamp": str(place.root / "state/stamp.json"), "sources": []}


def test_a_shared_revision_is_proved_and_left_as_it_is(place: Place, shared: dict[str, Any]) -> None:
    write(place.destination, CONTENT)
    times = {path: path.stat().st_mtime_ns for path in place.destination.rglob("*")}
    job = place.job(**shared)
    fetch(job)
    assert proof.is_complete(job)
    assert {path: path.stat().st_mtime_ns for path in place.destination.rglob("*")} == times
    assert not job.partial.exists()


@pytest.mark.parametrize("damage", [Path.unlink, one_bit])
def test_a_shared_revision_that_is_not_whole_is_refused(
    place: Place, shared: dict[str, Any], damage: Callable[[Path], None]
) -> None:
    write(place.destination, CONTENT)
    damage(place.destination / LARGE)
    job = place.job(**shared)
    message = refused(job)
    assert message.startswith(f"{job.destination}: {LARGE} ")
    assert message.endswith("-> put it there whole: on a shared filesystem nothing is fetched")
    assert not proof.is_complete(job)


def test_of_many_that_are_missing_some_are_named(place: Place, shared: dict[str, Any]) -> None:
    place.manifest = manifest_of({f"{number}.txt": b"" for number in range(8)}, "e9b33add")
    message = refused(place.job(**shared))
    assert (
        "0.txt is missing; 1.txt is missing; 2.txt is missing; 3.txt is missing; 4.txt is missing; and 3 more"
        in message
    )


# With other hosts


class Neighbours:
    """In place of Spread: the other hosts have the revision in a folder. They send what is wrong as often as they are told to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tree = root
        self.wrong: dict[str, int] = {}
        self.asked: list[list[str]] = []
        self.offered: list[str] = []
        self.rejected: list[str] = []
        self.calls: list[str] = []
        self.failure = ""
        self.meddle: Callable[[Path], None] = lambda _path: None  # with what has been offered
        self._lock = threading.Lock()

    def start(self, tree: Path) -> None:
        self.calls.append("start")
        self.tree = tree

    def offer(self, file: File) -> None:
        assert (self.tree / file.path).read_bytes() == CONTENT[file.path]
        with self._lock:
            self.offered.append(file.path)
        self.meddle(self.tree / file.path)

    def receive(self, files: Sequence[File], arrived: Callable[[File], None], stop: threading.Event) -> None:
        assert not stop.is_set()
        self.asked.append(sorted(file.path for file in files))
        if self.failure:
            raise SpreadError(self.failure)
        for file in files:
            write(self.tree, {file.path: CONTENT[file.path]})
            if self.wrong.get(file.path, 0) > 0:
                self.wrong[file.path] -= 1
                one_bit(self.tree / file.path)
            arrived(file)

    def reject(self, file: File) -> None:
        self.rejected.append(file.path)

    def moved(self, tree: Path) -> None:
        self.calls.append("moved")
        assert contents(tree) == CONTENT
        self.tree = tree

    def report(self, progress: Progress) -> None:
        if progress.phase in ("complete", "failed") and progress.phase not in self.calls:
            self.calls.append(progress.phase)

    def linger(self) -> None:
        self.calls.append("linger")

    def close(self) -> None:
        self.calls.append("close")


SITE: dict[str, Any] = {
    "hosts": {name: {"address": name} for name in ("h20-01", "h20-02", "h20-03")},
    "origins": ["h20-01", "h20-02"],
    "port": 8481,
    "processes": 1,
}


@pytest.fixture
def neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Neighbours:
    made = Neighbours(tmp_path)

    def spread(_job: Job, _manifest: Manifest) -> Neighbours:
        return made

    monkeypatch.setattr(program, "Spread", spread)
    return made


def test_origins_fetch_disjoint_parts_and_the_others_nothing(hub: Hub, place: Place, neighbours: Neighbours) -> None:
    fetched = []
    for name in SITE["hosts"]:
        before = hub.asked("/*/resolve/*")
        fetch(place.job(host=name, distribution="peer", site=SITE))
        assert contents(place.destination) == CONTENT
        fetched.append(hub.asked("/*/resolve/*") - before)
        assert sorted(neighbours.offered) == sorted(CONTENT)
        assert told(place)["origin"] < TOTAL
        neighbours.offered.clear()
        shutil.rmtree(place.destination)
    assert fetched == [3, 2, 0]
    first, second, *rest = neighbours.asked
    assert sorted(first + second) == sorted(CONTENT)
    assert rest == [sorted(CONTENT)]
    assert (LARGE in first, LARGE in second) == (False, True)


def test_the_site_is_served_until_it_needs_no_more(place: Place, neighbours: Neighbours) -> None:
    fetch(place.job(distribution="peer", site=SITE))
    assert neighbours.calls == ["start", "moved", "complete", "linger", "close"]


def test_a_complete_host_serves_all_it_has(hub: Hub, place: Place, neighbours: Neighbours) -> None:
    fetch(place.job())
    asked = hub.asked("*")
    fetch(place.job(distribution="http", site=SITE))
    assert sorted(neighbours.offered) == sorted(CONTENT)
    assert neighbours.calls == ["start", "complete", "linger", "close"]
    assert (hub.asked("*"), neighbours.asked) == (asked, [])


def test_what_is_there_already_is_offered_and_the_rest_received(place: Place, neighbours: Neighbours) -> None:
    job = place.job(host="h20-03", distribution="peer", site=SITE)
    write(job.partial, {LARGE: WEIGHTS})
    fetch(job)
    assert neighbours.asked == [sorted({*CONTENT} - {LARGE})]
    assert sorted(neighbours.offered) == sorted(CONTENT)


def test_what_arrives_wrong_is_sent_again(place: Place, neighbours: Neighbours) -> None:
    neighbours.wrong = {LARGE: 2, "config.json": 1}
    fetch(place.job(host="h20-03", distribution="peer", site=SITE))
    assert sorted(neighbours.rejected) == ["config.json", LARGE, LARGE]
    assert neighbours.asked == [sorted(CONTENT), ["config.json", LARGE], [LARGE]]
    assert contents(place.destination) == CONTENT


def test_what_arrives_wrong_three_times_ends_the_work(place: Place, neighbours: Neighbours) -> None:
    neighbours.wrong = {LARGE: 3}
    message = refused(place.job(host="h20-03", distribution="peer", site=SITE))
    assert message.startswith(f"{LARGE} has sha256 ")
    assert "3 times as the other hosts sent it -> prove theirs" in message
    assert neighbours.calls == ["start", "failed", "close"]
    assert not place.destination.exists()


def test_a_site_that_cannot_give_the_files_ends_the_work(place: Place, neighbours: Neighbours) -> None:
    neighbours.failure = "the origin h20-01 failed: no room -> see there"
    assert refused(place.job(host="h20-03", distribution="peer", site=SITE)) == neighbours.failure
    assert neighbours.calls == ["start", "failed", "close"]


def test_what_is_touched_after_its_proof_is_proved_again(place: Place, neighbours: Neighbours) -> None:
    neighbours.meddle = Path.touch
    job = place.job(distribution="peer", site=SITE)
    fetch(job)
    assert proof.is_complete(job)


def test_what_is_damaged_after_its_proof_never_becomes_visible(place: Place, neighbours: Neighbours) -> None:
    neighbours.meddle = lambda path: one_bit(path) if path.name == LARGE else None
    job = place.job(distribution="peer", site=SITE)
    message = refused(job)
    assert message.startswith(f"{job.partial}: {LARGE} has sha256 ")
    assert ": it changed after it had been proved -> see who writes there" in message
    assert not place.destination.exists()


def test_a_source_that_fails_ends_what_is_received_too(hub: Hub, place: Place, neighbours: Neighbours) -> None:
    hub.served.faults.set({f"*{LARGE}": "missing"})
    message = refused(place.job(host="h20-01", distribution="peer", site=SITE))
    assert message.startswith(f"no source has {LARGE}: ")
    assert neighbours.calls[-2:] == ["failed", "close"]
