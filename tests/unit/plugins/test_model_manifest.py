# SPDX-License-Identifier: Apache-2.0
"""model_manifest against the test bed's hub, and against servers that are no hub."""

from __future__ import annotations

import hashlib
import json
import socketserver
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed.hub import server
from unit.plugins.hubs import ABSENT, FILES, NAME, PRIVATE, TOKEN, WEIGHTS, Hub, mirror, running, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(tmp_path, monkeypatch) as running_hub:
        yield running_hub


def test_every_file_of_the_revision_is_written_with_its_digest(hub: Hub) -> None:
    result = hub.ask()
    expected = {
        "repo": NAME,
        "revision": hub.revision,
        "files": [
            {
                "path": path,
                "size": len(content),
                "algorithm": "sha256" if content is WEIGHTS else "git-sha1",
                "digest": hashlib.sha256(content).hexdigest()
                if content is WEIGHTS
                else hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest(),
            }
            for path, content in sorted(FILES.items())
        ],
    }
    assert result["changed"] is True
    assert result["manifest"] == json.loads(hub.path.read_text()) == expected
    assert result["bytes"] == sum(map(len, FILES.values()))
    assert result["diff"]["after"] == hub.path.read_text()
    assert hub.path.stat().st_mode & 0o777 == 0o644


def test_check_mode_tells_the_same_and_writes_nothing(hub: Hub) -> None:
    result = hub.ask(check=True)
    assert (result["changed"], len(result["manifest"]["files"]), hub.path.exists()) == (True, 3, False)


def test_a_kept_manifest_asks_nobody(hub: Hub) -> None:
    first = hub.ask()
    asked, inode = hub.requests, hub.path.stat().st_ino
    kept = hub.ask(endpoint="http://127.0.0.1:9")
    assert (kept["changed"], kept["manifest"], kept["bytes"], kept["diff"]) == (
        False,
        first["manifest"],
        first["bytes"],
        {},
    )
    assert (hub.requests, hub.path.stat().st_ino) == (asked, inode)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({"repo": NAME, "revision": ABSENT, "files": []}),
        json.dumps({"repo": PRIVATE, "revision": "as asked", "files": []}),
    ],
)
def test_what_is_no_manifest_of_this_revision_is_replaced(hub: Hub, text: str) -> None:
    hub.path.write_text(text.replace("as asked", hub.revision))
    assert hub.ask()["changed"] is True
    assert hub.ask()["changed"] is False
    assert len(json.loads(hub.path.read_text())["files"]) == 3


def test_a_tree_of_many_pages_is_read_to_its_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hub.ask()["manifest"]
    hub.path.unlink()
    monkeypatch.setattr(server, "PAGE", 2)
    before = hub.requests
    assert hub.ask()["manifest"] == whole
    assert hub.requests - before == 3  # five lines: three files and two folders


@pytest.mark.parametrize("revision", ["main", "v1.0", "e9b33add", ABSENT.replace("0", "A"), f"{ABSENT}0", ""])
def test_a_revision_that_moves_is_refused_before_anybody_is_asked(hub: Hub, revision: str) -> None:
    result = hub.ask(revision=revision)
    assert result["failed"]
    assert f"{revision!r} is no full commit" in result["msg"]
    assert hub.requests == 0


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"revision": ABSENT}, f"has no revision {ABSENT} of {NAME} -> correct the release's model.revision"),
        ({"repo": "org/absent"}, "has no repository org/absent, or none that this token may read (HTTP 401) -> "),
        (
            {"repo": "org/absent", "token": TOKEN},
            "has no repository org/absent, or none that this token may read (HTTP 404) -> ",
        ),
        ({"repo": PRIVATE}, f"has no repository {PRIVATE}, or none that this token may read (HTTP 401) -> "),
        (
            {"repo": PRIVATE, "token": "wrong"},
            f"has no repository {PRIVATE}, or none that this token may read (HTTP 401) -> ",
        ),
        ({"endpoint": "http://127.0.0.1:9"}, "the hub http://127.0.0.1:9 does not answer: "),
        ({"endpoint": "hub.test"}, "the hub hub.test does not answer: "),
    ],
)
def test_a_refusal_says_what_to_do_and_writes_nothing(hub: Hub, params: dict[str, Any], told: str) -> None:
    result = hub.ask(**params)
    assert result["failed"]
    assert told in result["msg"]
    assert " -> " in result["msg"]
    assert not hub.path.exists()


def test_a_token_opens_what_is_private(hub: Hub) -> None:
    assert hub.ask(repo=PRIVATE, token=TOKEN)["manifest"]["repo"] == PRIVATE


@pytest.mark.parametrize(
    ("kind", "told"), [("429", "answers HTTP 429"), ("503", "answers HTTP 503"), ("silent", "does not answer")]
)
def test_a_hub_in_trouble(hub: Hub, kind: str, told: str) -> None:
    hub.served.faults.set({"*tree*": {"kind": kind, "seconds": 5}})
    result = hub.ask(timeout=1)
    hub.served.faults.clear()
    assert told in result["msg"]
    assert result["msg"].endswith("set fleet_hub_endpoint to another mirror")
    assert hub.ask(timeout=1)["changed"] is True


def test_an_authority_that_is_none_is_an_answer_and_no_crash(hub: Hub) -> None:
    endpoint = hub.endpoint.replace("http:", "https:")
    assert "does not answer" in hub.ask(endpoint=endpoint, ca_certificates="no certificate")["msg"]


class Stranger(socketserver.StreamRequestHandler):
    """Answers every request with the bytes that its server was given."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(self.server.answer)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n<html>no</html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[",
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"error": "no"',
    ],
    ids=["nothing", "another protocol", "a page", "cut off", "a chunk cut off", "half a document"],
)
def test_a_server_that_is_no_hub_does_not_answer(hub: Hub, answer: bytes) -> None:
    stranger = socketserver.TCPServer(("127.0.0.1", 0), Stranger)
    stranger.answer = answer  # type: ignore[attr-defined]
    with serving(stranger):
        result = hub.ask(endpoint=f"http://127.0.0.1:{stranger.server_address[1]}")
    assert result["failed"]
    assert "does not answer: " in result["msg"]
    assert not hub.path.exists()


@pytest.fixture
def text(hub: Hub) -> str:
    """The manifest of the revision, which is not on the host any more."""
    manifest = hub.ask()["manifest"]
    hub.path.unlink()
    return json.dumps(manifest)


def put(root: Path, revision: str, text: str) -> Path:
    place = root / f"{NAME}/{revision}.manifest.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    return root


def test_a_mirror_is_asked_in_place_of_the_hub(hub: Hub, text: str, tmp_path: Path) -> None:
    asked = hub.requests
    with mirror(put(tmp_path / "mirror", hub.revision, text)) as url:
        result = hub.ask(mirror=f"{url}/")
    assert (result["changed"], result["manifest"]) == (True, json.loads(text))
    assert json.loads(hub.path.read_text()) == json.loads(text)
    assert hub.requests == asked
    assert hub.ask(mirror="http://127.0.0.1:9")["changed"] is False


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("", "is no manifest -> put the revision on the mirror again"),
        ("[]", "is no manifest -> "),
        ('{"repo": "org/model", "revision": "x", "files": []}', "is no manifest -> "),
        ('{"repo": "org/model", "revision": "x", "files": [{"path": "a"}]}', "is no manifest -> "),
        (
            '{"repo": "o/n", "revision": "x", "files": [{"path": "a", "size": 1, "algorithm": "sha256", "digest": "d"}]}',
            f"is the manifest of o/n@x, not of {NAME}@",
        ),
    ],
)
def test_what_a_mirror_has_in_place_of_the_manifest_is_named(hub: Hub, tmp_path: Path, wrong: str, told: str) -> None:
    with mirror(put(tmp_path / "mirror", hub.revision, wrong)) as url:
        result = hub.ask(mirror=url)
    assert result["failed"]
    assert f"{url}/{NAME}/{hub.revision}.manifest.json {told}" in result["msg"]
    assert not hub.path.exists()


def test_a_mirror_without_the_revision_or_without_a_server_is_named(hub: Hub, tmp_path: Path) -> None:
    with mirror(tmp_path) as url:
        told = hub.ask(mirror=url)["msg"]
    assert told.startswith(f"the mirror has no {url}/{NAME}/{hub.revision}.manifest.json (HTTP 404) -> ")
    gone = hub.ask(mirror=url)["msg"]
    assert gone.startswith(f"the mirror {url} does not answer: ")
    assert gone.endswith("correct fleet_model_mirror")


def test_the_release_brings_its_own_and_nobody_is_asked(hub: Hub, text: str) -> None:
    asked = hub.requests
    given: dict[str, Any] = {"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest(), "name": "tiny.json"}
    assert hub.ask(**given)["manifest"] == json.loads(text)
    assert hub.ask(**given)["changed"] is False
    assert hub.requests == asked


def test_a_manifest_that_the_release_corrects_replaces_the_kept_one(hub: Hub, text: str) -> None:
    hub.ask()
    other = json.loads(text)
    other["files"][0]["digest"] = "0" * 40
    corrected = json.dumps(other)
    result = hub.ask(content=corrected, sha256=hashlib.sha256(corrected.encode()).hexdigest())
    assert (result["changed"], json.loads(hub.path.read_text())) == (True, other)


def test_a_manifest_that_is_not_the_release_s_is_refused_by_name(hub: Hub, text: str) -> None:
    expected = hashlib.sha256(text.encode()).hexdigest()
    told = hub.ask(content=text.replace("1", "2", 1), sha256=expected, name="tiny.json")["msg"]
    assert told.startswith("tiny.json has sha256 ")
    assert f"the release says {expected} -> restore the file" in told
    assert not hub.path.exists()
    foreign = hub.ask(content=text, sha256=expected, name="tiny.json", revision=ABSENT)["msg"]
    assert foreign.startswith(f"tiny.json is the manifest of {NAME}@{hub.revision}, not of {NAME}@{ABSENT} -> ")
