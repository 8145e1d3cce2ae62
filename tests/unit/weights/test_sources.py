# SPDX-License-Identifier: Apache-2.0
"""sources: what each kind calls a file, to whom a token goes, and what an answer means. Faults of the way there are in test_transfer."""

from __future__ import annotations

import email.utils
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import sources
from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Source
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import Manifest
from ansible_collections.h20.fleet.plugins.module_utils._weights.sources import LaterError, OutError, SourceError
from testbed.hub.server import s3
from unit.plugins.hubs import Quiet, mirror
from unit.weights.support import CONTENT, LARGE, REMOTE, WEIGHTS, Hub, manifest_of, running, write

TOKEN = "token-of-a-test"  # noqa: S105 (opens a repository that lives for a test)
MANIFEST = manifest_of(CONTENT, "e9b33add")
FILE = next(file for file in MANIFEST.files if file.path == LARGE)


def got(source: Source, path: str = LARGE, start: int = 0, manifest: Manifest = MANIFEST) -> bytes:
    """What a source gives of a file from byte `start` on."""
    file = next(file for file in manifest.files if file.path == path)
    with sources.asked(source, manifest, file, start, patience=1) as answer:
        assert answer.start == start
        return b"".join(iter(answer.read, b""))


@pytest.mark.parametrize("kind", [*REMOTE, "path"])
@pytest.mark.parametrize("path", CONTENT)
def test_every_kind_gives_every_file(hub: Hub, kind: str, path: str) -> None:
    assert got(hub.source(kind), path, manifest=hub.manifest) == CONTENT[path]


@pytest.mark.parametrize("kind", [*REMOTE, "path"])
def test_every_kind_goes_on_where_a_file_stood(hub: Hub, kind: str) -> None:
    assert got(hub.source(kind), start=4000, manifest=hub.manifest) == WEIGHTS[4000:]


def test_modelscope_has_revisions_of_its_own(hub: Hub) -> None:
    source = Source("modelscope", hub.url, revision=hub.revision)
    assert got(source, manifest=manifest_of(CONTENT, "of another hub")) == WEIGHTS


def test_a_folder_may_hold_the_files_themselves(hub: Hub) -> None:
    assert got(Source("path", str(hub.folder))) == WEIGHTS


@pytest.mark.parametrize(
    ("kind", "variable"), [("hub", "HF_TOKEN"), ("modelscope", "MODELSCOPE_API_TOKEN")], ids=["hub", "modelscope"]
)
def test_a_token_opens_the_hub_and_goes_no_further(
    kind: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, monkeypatch, token=TOKEN) as hub:
        with pytest.raises(OutError, match=r"HTTP (401|403|404): "):
            got(hub.source(kind), manifest=hub.manifest)
        monkeypatch.setenv(variable, TOKEN)
        assert got(hub.source(kind), manifest=hub.manifest) == WEIGHTS
        assert hub.asked(f"/cdn/*/{LARGE}") == 1
        assert hub.stats["leaks"] == 0


class Asked(Quiet):
    """A web server that writes down what it is asked and answers as it is told."""

    headers_of: ClassVar[list[dict[str, str]]] = []
    answers: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []

    def do_GET(self) -> None:  # noqa: N802
        self.headers_of.append({name.lower(): value for name, value in self.headers.items()})
        status, headers, body = self.answers.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Asked, "headers_of", [])
    monkeypatch.setattr(Asked, "answers", [])
    with mirror(tmp_path, Asked) as address:
        yield address


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("host", "kept"), [("127.0.0.1", True), ("localhost", False)])
def test_a_redirect_within_the_host_keeps_the_token_and_every_one_the_range(
    url: str, monkeypatch: pytest.MonkeyPatch, status: int, host: str, kept: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    target = url.replace("127.0.0.1", host) + "/elsewhere"
    span = f"bytes 4000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    Asked.answers += [(status, {"Location": target}, b""), (206, {"Content-Range": span}, WEIGHTS[4000:])]
    assert got(Source("hub", url), start=4000) == WEIGHTS[4000:]
    assert [headers.get("range") for headers in Asked.headers_of] == ["bytes=4000-"] * 2
    assert [headers.get("authorization") for headers in Asked.headers_of] == [
        f"Bearer {TOKEN}",
        f"Bearer {TOKEN}" if kept else None,
    ]


SIZE = str(len(WEIGHTS))
DATE = email.utils.formatdate(time.time() + 100_000, usegmt=True)


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (401, {}, "HTTP 401: it wants a token, or another one"),
        (403, {}, "HTTP 403: it does not allow this"),
        (404, {}, "HTTP 404: it has no such file or revision"),
        (410, {}, "HTTP 410: it has no such file any more"),
        (416, {}, "HTTP 416: its file is shorter"),
        (418, {}, "HTTP 418: "),
        (302, {"Location": "ftp://127.0.0.1/x"}, "HTTP 302: redirected to ftp://"),
        (200, {"Content-Length": "7"}, f"it has 7 bytes, the manifest says {SIZE}"),
        (206, {"Content-Range": "bytes 4000-4006/4007"}, f"it has 4007 bytes, the manifest says {SIZE}"),
        (206, {"Content-Range": f"bytes 0-9/{SIZE}"}, f"asked for byte 4000 it answers with bytes 0-9/{SIZE}"),
        (206, {}, "asked for byte 4000 it answers with None"),
    ],
)
def test_an_answer_after_which_it_need_not_be_asked_again(
    url: str, status: int, headers: dict[str, str], told: str
) -> None:
    Asked.answers.append((status, headers, b""))
    with pytest.raises(OutError) as refused:
        got(Source("http", url), start=4000)
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (408, {}, 0),
        (429, {"Retry-After": "7"}, 7),
        (429, {"Retry-After": DATE}, 100_000),
        (429, {"Retry-After": "soon"}, 0),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (500, {}, 0),
        (502, {}, 0),
    ],
)
def test_an_answer_after_which_it_may_be_asked_again(
    url: str, status: int, headers: dict[str, str], wait: float
) -> None:
    Asked.answers.append((status, headers, b""))
    with pytest.raises(LaterError, match=f"HTTP {status}") as refused:
        got(Source("http", url))
    assert refused.value.wait == pytest.approx(wait, rel=0.01)


def test_an_address_behind_a_redirect_may_be_had_anew(url: str) -> None:
    Asked.answers += [(302, {"Location": f"{url}/cdn"}, b""), (403, {}, b"")]
    with pytest.raises(LaterError, match="HTTP 403 behind a redirect: its address has expired"):
        got(Source("hub", url))


def test_redirects_without_end_are_refused(url: str) -> None:
    Asked.answers += [(302, {"Location": f"{url}/again"}, b"")] * 11
    with pytest.raises(OutError, match="HTTP 302"):
        got(Source("hub", url))


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_host_that_is_not_there_may_come_back(address: str) -> None:
    with pytest.raises(LaterError, match=r"ConnectionRefusedError|gaierror"):
        got(Source("http", address))


def test_a_server_without_ranges_begins_anew(url: str) -> None:
    Asked.answers.append((200, {"Content-Length": SIZE}, WEIGHTS))
    with sources.asked(Source("http", url), MANIFEST, FILE, 4000, patience=1) as answer:
        assert answer.start == 0
        assert b"".join(iter(answer.read, b"")) == WEIGHTS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "neither .* nor .* is a file"),
        ({LARGE: WEIGHTS[:-1]}, f"it has {len(WEIGHTS) - 1} bytes, the manifest says {SIZE}"),
    ],
)
def test_a_folder_that_has_something_else_is_out(tmp_path: Path, content: dict[str, bytes], told: str) -> None:
    write(tmp_path, content)
    with pytest.raises(OutError, match=told):
        got(Source("path", str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (Source("carrier pigeon", "http://x"), "is of no kind that is known: hub, modelscope, http, s3, path"),
        (Source("http", "hub.example.com"), "is no address that begins with http:// or https://"),
        (Source("hub", "ftp://hub.example.com"), "is no address that begins with http:// or https://"),
        (Source("path", "models"), "is no absolute path"),
        (Source("http", "https://user:secret@hub.example.com"), "has a password in its address"),
    ],
)
def test_a_source_that_could_never_answer_is_refused(source: Source, told: str) -> None:
    with pytest.raises(SourceError) as refused:
        sources.check(source)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.fixture
def signing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Source:
    """The hub's bucket that wants signatures, and the key pair for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET_KEY)
    return Source("s3", f"{hub.url}/{s3.PRIVATE}/{s3.PREFIX}", region=s3.REGION)


@pytest.mark.parametrize("path", CONTENT)
@pytest.mark.parametrize("start", [0, 4])
def test_signed_storage_accepts_the_signature(hub: Hub, signing: Source, path: str, start: int) -> None:
    pytest.importorskip("botocore", reason="signatures are botocore's")
    start = min(start, len(CONTENT[path]))
    assert got(signing, path, start, manifest=hub.manifest) == CONTENT[path][start:]


def test_another_secret_is_refused(hub: Hub, signing: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("botocore", reason="signatures are botocore's")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(OutError, match=f"HTTP {HTTPStatus.FORBIDDEN.value}: it does not allow this"):
        got(signing, manifest=hub.manifest)


def test_signed_storage_without_botocore_is_refused_at_once(signing: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    with pytest.raises(SourceError, match="botocore is not here -> install python3-botocore"):
        sources.check(signing)
