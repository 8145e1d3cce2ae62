# SPDX-License-Identifier: Apache-2.0
"""model_fetch from a mirror of plain files: ranges, what was cut off, and servers that have something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar

import pytest
from unit.plugins.hubs import Quiet, mirror
from unit.roles.test_model_fetch import CONTENT, REVISION, WEIGHTS, contents, file_of, model_fetch, write

NAMED = {**CONTENT, "a name/with %20 and ü.txt": b"quoted\n"}


class Ranged(Quiet):
    """A web server that knows ranges, as nginx does; it writes down what it is asked, and breaks as it is told."""

    asked: ClassVar[list[tuple[str, str]]] = []
    cut: ClassVar[dict[str, list[int]]] = {}  # name -> after how many bytes each of the next answers ends
    ranges: ClassVar[bool] = True
    silent: ClassVar[bool] = False

    def do_GET(self) -> None:  # noqa: N802
        span = self.headers.get("Range", "")
        self.asked.append((self.path, span))
        path = Path(self.translate_path(self.path))
        if self.silent:
            self.rfile.read(1)  # until the client gives up
            return
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        data, start = path.read_bytes(), int(re.sub(r"\D", "", span) or 0) if self.ranges else 0
        if start >= len(data) > 0:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cuts = self.cut.get(path.name, [])
        self.wfile.write(data[start:][: cuts.pop(0) if cuts else None])


class Revision:
    """A revision on a mirror, and the job that fetches it."""

    def __init__(self, root: Path, url: str, content: dict[str, bytes]) -> None:
        self.place = root / "mirror/org/name" / REVISION
        self.destination = root / "models/org/name" / REVISION
        self.partial = self.destination.with_name(f"{REVISION}.partial")
        self.path = root / "job.json"
        write(self.place, content)
        files = [vars(file_of(path, data)) for path, data in content.items()]
        manifest = root / "manifest.json"
        manifest.write_text(json.dumps({"repo": "org/name", "revision": REVISION, "files": files}))
        job = {"manifest": str(manifest), "destination": str(self.destination), "source": "mirror", "endpoint": url}
        self.path.write_text(json.dumps(job | {"workers": 3, "timeout": 1}))

    def fetch(self) -> None:
        model_fetch.fetch(model_fetch.Job.load(self.path))

    def refused(self) -> str:
        with pytest.raises(model_fetch.FetchError) as failed:
            self.fetch()
        assert not self.destination.exists()
        return str(failed.value)


@pytest.fixture
def revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Revision]:
    for name, value in {"asked": [], "cut": {}, "ranges": True, "silent": False}.items():
        monkeypatch.setattr(Ranged, name, value)
    (tmp_path / "mirror").mkdir()
    with mirror(tmp_path / "mirror", Ranged) as url:
        yield Revision(tmp_path, f"{url}/", NAMED)


def test_every_file_is_fetched_once_and_proved(revision: Revision) -> None:
    revision.fetch()
    assert contents(revision.destination) == NAMED
    assert not (revision.destination / ".cache").exists()
    assert len(Ranged.asked) == len(NAMED)
    revision.fetch()
    assert len(Ranged.asked) == len(NAMED)


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_cut_off_goes_on_where_it_stood(
    revision: Revision, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranged, "ranges", ranges)
    Ranged.cut["model.safetensors"] = [4000, 2000]
    revision.fetch()
    assert contents(revision.destination) == NAMED
    spans = [span for path, span in Ranged.asked if path.endswith("model.safetensors")]
    assert spans == (["", "bytes=4000-", "bytes=6000-"] if ranges else ["", "bytes=4000-", "bytes=2000-"])


def test_an_interrupted_fetch_is_resumed_by_the_next(revision: Revision) -> None:
    write(revision.partial / ".cache/mirror", {"model.safetensors.part": WEIGHTS[:5000], "config.json.part": b"x" * 99})
    revision.fetch()
    assert contents(revision.destination) == NAMED
    asked = dict(Ranged.asked)
    assert asked[next(path for path in asked if path.endswith("model.safetensors"))] == "bytes=5000-"
    assert asked[next(path for path in asked if path.endswith("config.json"))] == ""


def test_a_part_with_wrong_bytes_is_fetched_anew(revision: Revision) -> None:
    write(revision.partial / ".cache/mirror", {"model.safetensors.part": b"x" * 5000})
    revision.fetch()
    assert contents(revision.destination) == NAMED
    assert [span for path, span in Ranged.asked if path.endswith("model.safetensors")] == ["bytes=5000-", ""]


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (None, "the mirror has no such file (HTTP 404) -> put the revision on the mirror again, whole"),
        (WEIGHTS[:-1], f"has {len(WEIGHTS) - 1} bytes, the manifest says {len(WEIGHTS)} -> "),
        (WEIGHTS + b"x", f"has {len(WEIGHTS) + 1} bytes, the manifest says {len(WEIGHTS)} -> "),
        (b"x" * len(WEIGHTS), "model.safetensors has sha256 "),
    ],
)
def test_a_mirror_that_has_something_else_is_refused_by_the_file_s_name(
    revision: Revision, there: bytes | None, told: str
) -> None:
    path = revision.place / "model.safetensors"
    path.unlink()
    if there is not None:
        path.write_bytes(there)
    message = revision.refused()
    assert message.startswith(f"org/name@{REVISION[:12]}: ")
    assert "model.safetensors" in message
    assert told in message
    if told.endswith("sha256 "):
        assert "fleet_model_mirror" in message
    path.write_bytes(WEIGHTS)
    revision.fetch()
    assert contents(revision.destination) == NAMED


def test_a_range_that_the_mirror_s_file_does_not_reach_is_named(revision: Revision) -> None:
    write(revision.partial / ".cache/mirror", {"model.safetensors.part": WEIGHTS[:5000]})
    (revision.place / "model.safetensors").write_bytes(WEIGHTS[:4000])
    assert "the mirror has a shorter file (HTTP 416) -> " in revision.refused()


def test_a_connection_that_ends_again_and_again_without_a_byte_is_named(revision: Revision) -> None:
    Ranged.cut["model.safetensors"] = [100, 0, 0, 0]
    told = revision.refused()
    assert f"failed 3 times at byte 100 of {len(WEIGHTS)}: " in told
    assert told.endswith("run the stage again: it resumes")
    assert (revision.partial / ".cache/mirror/model.safetensors.part").read_bytes() == WEIGHTS[:100]


def test_a_mirror_that_is_silent_is_left_after_the_timeout(revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranged, "silent", True)
    assert "failed 3 times at byte 0" in revision.refused()


def test_a_mirror_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = Revision(tmp_path, "http://127.0.0.1:9", CONTENT)
    assert "http://127.0.0.1:9/org/name/" in gone.refused()


def test_another_kind_of_source_is_refused(tmp_path: Path) -> None:
    made = Revision(tmp_path, "http://127.0.0.1:9", CONTENT)
    made.path.write_text(json.dumps(json.loads(made.path.read_text()) | {"source": "carrier pigeon"}))
    assert "names a source carrier pigeon; known are hub, mirror" in made.refused()
