# SPDX-License-Identifier: Apache-2.0
"""model_manifest against the test bed's hub, and against servers that are no hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import socketserver
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testbed.hub.server import huggingface
from unit.plugins.hubs import ABSENT, FILES, NAME, PRIVATE, TOKEN, WEIGHTS, Hub, mirror, running, serving, source

ONE_FILE = {"path": "a", "size": 1, "algorithm": "sha256", "digest": "d" * 64}


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
    assert result["text"] == hub.path.read_text()
    assert result["sha256"] == hashlib.sha256(hub.path.read_bytes()).hexdigest()
    assert result["diff"]["after"] == hub.path.read_text()
    assert hub.path.stat().st_mode & 0o777 == 0o644


def test_check_mode_tells_the_same_and_writes_nothing(hub: Hub) -> None:
    result = hub.ask(check=True)
    assert (result["changed"], len(result["manifest"]["files"]), hub.path.exists()) == (True, 3, False)


def test_a_kept_manifest_asks_nobody(hub: Hub) -> None:
    first = hub.ask()
    asked, inode = hub.requests, hub.path.stat().st_ino
    kept = hub.ask(sources=[source("http://127.0.0.1:9")])
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
    monkeypatch.setattr(huggingface, "PAGE", 2)
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
        ({"sources": [source("http://127.0.0.1:9")]}, "the hub http://127.0.0.1:9 does not answer: "),
        ({"sources": [source("hub.test")]}, "the hub hub.test does not answer: "),
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
    assert "does not answer" in hub.ask(sources=[source(endpoint)], ca_certificates="no certificate")["msg"]


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
        result = hub.ask(sources=[source(f"http://127.0.0.1:{stranger.server_address[1]}")])
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
        result = hub.ask(sources=[source(f"{url}/", "http")])
    assert (result["changed"], result["manifest"]) == (True, json.loads(text))
    assert json.loads(hub.path.read_text()) == json.loads(text)
    assert hub.requests == asked
    assert hub.ask(sources=[source("http://127.0.0.1:9", "http")])["changed"] is False


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("", "is no manifest -> put the revision on the mirror again"),
        ("[]", "is no manifest -> "),
        ('{"repo": "org/model", "revision": "x", "files": []}', "is no manifest: it names no file -> "),
        ('{"repo": "org/model", "revision": "x", "files": [{"path": "a"}]}', "is no manifest -> "),
        (
            json.dumps({"repo": "o/n", "revision": "x", "files": [ONE_FILE]}),
            f"is the manifest of o/n@x, not of {NAME}@",
        ),
        (
            json.dumps({"repo": NAME, "revision": "x", "files": [ONE_FILE | {"path": "../elsewhere"}]}),
            "names a path outside the revision: '../elsewhere' -> ",
        ),
    ],
)
def test_what_a_mirror_has_in_place_of_the_manifest_is_named(hub: Hub, tmp_path: Path, wrong: str, told: str) -> None:
    with mirror(put(tmp_path / "mirror", hub.revision, wrong)) as url:
        result = hub.ask(sources=[source(url, "http")])
    assert result["failed"]
    assert f"{url}/{NAME}/{hub.revision}.manifest.json {told}" in result["msg"]
    assert not hub.path.exists()


def test_a_mirror_without_the_revision_or_without_a_server_is_named(hub: Hub, tmp_path: Path) -> None:
    with mirror(tmp_path) as url:
        told = hub.ask(sources=[source(url, "http")])["msg"]
    assert told.startswith(f"the mirror has no {url}/{NAME}/{hub.revision}.manifest.json (HTTP 404) -> ")
    gone = hub.ask(sources=[source(url, "http")])["msg"]
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


def test_a_given_manifest_is_written_as_it_is(hub: Hub, text: str) -> None:
    """So that the file on the host has the sha256 that the release names, however it is laid out."""
    compact = json.dumps(json.loads(text), separators=(",", ":"))
    hub.ask()
    result = hub.ask(content=compact, sha256=hashlib.sha256(compact.encode()).hexdigest())
    assert (result["changed"], hub.path.read_text(), result["text"]) == (True, compact, compact)
    assert result["sha256"] == hashlib.sha256(hub.path.read_bytes()).hexdigest()


def test_modelscope_knows_the_sha256_of_every_file(hub: Hub) -> None:
    result = hub.ask(sources=[source(hub.endpoint, "modelscope")])
    assert (result["manifest"]["repo"], result["manifest"]["revision"]) == (NAME, hub.revision)
    assert result["manifest"]["files"] == [
        {"path": path, "size": len(content), "algorithm": "sha256", "digest": hashlib.sha256(content).hexdigest()}
        for path, content in sorted(FILES.items())
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"revision": "v2"}, f"has no {NAME} at v2, or none that this token may read (HTTP 404) -> "),
        ({"url": "http://127.0.0.1:9"}, "ModelScope at http://127.0.0.1:9 does not answer: "),
    ],
)
def test_modelscope_that_refuses_is_named(hub: Hub, fields: dict[str, str], told: str) -> None:
    message = hub.ask(sources=[source(hub.endpoint, "modelscope") | fields])["msg"]
    assert told in message
    assert " -> " in message


def test_modelscope_s_token_opens_what_is_private_and_goes_to_it_alone(hub: Hub) -> None:
    modelscope = [source(hub.endpoint, "modelscope")]
    assert "(HTTP 403) -> " in hub.ask(sources=modelscope, repo=PRIVATE, token=TOKEN)["msg"]
    assert hub.ask(sources=modelscope, repo=PRIVATE, modelscope_token=TOKEN)["changed"] is True
    hub.path.unlink()
    assert "(HTTP 401) -> " in hub.ask(repo=PRIVATE, modelscope_token=TOKEN)["msg"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"Code": 200, "Data": {}}, "lists no files of org/model -> "),
        ([], "lists no files of org/model -> "),
        (
            {"Data": {"Files": [{"Path": "a", "Size": 1, "Type": "blob"}]}},
            "gives a a digest that is none of sha256, git-sha1 -> ",
        ),
        (
            {"Data": {"Files": [{"Path": str(n), "Size": 1, "Type": "tree"} for n in range(3000)]}},
            "lists 3,000 files of org/model and no more",
        ),
    ],
    ids=["no files", "a list", "no digest", "cut off"],
)
def test_a_list_of_modelscope_that_makes_no_manifest_is_refused(hub: Hub, answer: Any, told: str) -> None:
    stranger = socketserver.TCPServer(("127.0.0.1", 0), Stranger)
    body = json.dumps(answer).encode()
    stranger.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)  # type: ignore[attr-defined]
    with serving(stranger):
        url = f"http://127.0.0.1:{stranger.server_address[1]}"
        message = hub.ask(sources=[source(url, "modelscope")])["msg"]
    assert told in message
    assert not hub.path.exists()


def test_a_disk_and_a_bucket_are_laid_out_like_a_mirror(hub: Hub, text: str, tmp_path: Path) -> None:
    root = put(tmp_path / "disk", hub.revision, text)
    assert hub.ask(sources=[source(str(root), "path")])["manifest"] == json.loads(text)
    hub.path.unlink()
    with mirror(root) as url:
        assert hub.ask(sources=[source(url, "s3")])["manifest"] == json.loads(text)
        closed = hub.ask(sources=[source(f"{url}/elsewhere", "s3")], fresh=True)["msg"]
    assert "give the release a model.manifest" in closed
    empty = hub.ask(sources=[source(str(tmp_path / "nowhere"), "path")], fresh=True)["msg"]
    assert f"{tmp_path}/nowhere/{NAME}/{hub.revision}.manifest.json cannot be read on this host: No such file" in empty


def test_sources_are_asked_in_order_and_all_refusals_are_told(hub: Hub, text: str, tmp_path: Path) -> None:
    asked = hub.requests
    root = put(tmp_path / "disk", hub.revision, text)
    gone, disk, online = source("http://127.0.0.1:9"), source(str(root), "path"), source(hub.endpoint)
    assert hub.ask(sources=[gone, disk, online])["changed"] is True
    assert hub.requests == asked
    message = hub.ask(sources=[gone, source(str(tmp_path / "nowhere"), "path")], fresh=True)["msg"]
    evidence, _arrow, remedy = message.partition(" -> ")
    assert "the hub http://127.0.0.1:9 does not answer" in evidence
    assert f"; {tmp_path}/nowhere/" in evidence
    assert "set fleet_hub_endpoint to another mirror; or mount the disk" in remedy
    assert "no source is named -> set fleet_model_sources" in hub.ask(fresh=True, sources=[])["msg"]


def test_a_fresh_one_is_asked_for_and_shown_against_the_one_that_is_there(hub: Hub) -> None:
    whole = hub.ask()["text"]
    assert hub.ask(fresh=True)["changed"] is False
    old = json.loads(whole)
    del old["files"][0]
    hub.path.write_text(json.dumps(old))
    assert hub.ask()["changed"] is False
    result = hub.ask(fresh=True, check=True)
    assert (result["changed"], result["diff"]["before"]) == (True, json.dumps(old))
    assert hub.path.read_text() == json.dumps(old)
    assert hub.ask(fresh=True)["text"] == hub.path.read_text() == whole


def test_the_folder_is_made_where_it_can_be(hub: Hub) -> None:
    path = hub.path.parent / "new/folder/manifest.json"
    assert hub.ask(path=str(path), check=True)["changed"] is True
    assert not path.parent.exists()
    assert hub.ask(path=str(path))["text"] == path.read_text()
    told = hub.ask(path=str(path / "below/manifest.json"))["msg"]
    assert told.startswith(f"the folder {path}/below cannot be made: Not a directory -> ")


@dataclasses.dataclass
class Keys:
    """The keys of two people, of whom the site knows one."""

    folder: Path

    @property
    def signers(self) -> str:
        public = (self.folder / "own.pub").read_text(encoding="ascii")
        return f'fleet@site.test namespaces="h20-fleet-model" {public}'

    def sign(self, text: str, key: str = "own", namespace: str = "h20-fleet-model") -> str:
        command = ["ssh-keygen", "-Y", "sign", "-q", "-n", namespace, "-f", str(self.folder / key)]
        return subprocess.run(command, input=text, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "keys")
    made.folder.mkdir()
    for name in ("own", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet", "-f", str(made.folder / name)]
        subprocess.run(command, check=True)
    return made


def ask_given(hub: Hub, text: str, **params: Any) -> dict[str, Any]:
    return hub.ask(
        **{"content": text, "sha256": hashlib.sha256(text.encode()).hexdigest(), "name": "tiny.json"} | params
    )


def test_a_manifest_that_a_known_signer_has_signed_is_written(hub: Hub, text: str, keys: Keys) -> None:
    given = {"signature": keys.sign(text), "signers": keys.signers}
    result = ask_given(hub, text, **given)
    assert (result["changed"], result["signer"], hub.path.read_text()) == (True, "fleet@site.test", text)
    assert ask_given(hub, text, **given)["changed"] is False
    assert ask_given(hub, text, **given | {"signature": given["signature"].strip()})["signer"] == "fleet@site.test"


@pytest.mark.parametrize(
    ("signature", "told"),
    [
        (lambda _keys, _text: "", "tiny.json has no signature, and fleet_model_signers asks for one -> "),
        (lambda _keys, _text: "torn", "the signature of tiny.json is not one of it as it is"),
        (lambda keys, text: keys.sign(text + " "), "the signature of tiny.json is not one of it as it is"),
        (
            lambda keys, text: keys.sign(text, namespace="h20-fleet-bundle"),
            "the signature of tiny.json is not one of it as it is",
        ),
        (lambda keys, text: keys.sign(text, key="other"), "tiny.json was signed by the key SHA256:"),
    ],
    ids=["none", "torn", "of another text", "for another purpose", "by a stranger"],
)
def test_a_manifest_that_nobody_known_has_signed_is_refused_by_name(
    hub: Hub, text: str, keys: Keys, signature: Callable[[Keys, str], str], told: str
) -> None:
    result = ask_given(hub, text, signature=signature(keys, text), signers=keys.signers)
    assert result["failed"]
    assert told in result["msg"]
    assert " -> " in result["msg"]
    assert not hub.path.exists()


def test_where_signers_are_named_no_source_is_believed(hub: Hub, keys: Keys) -> None:
    hub.ask()
    asked = hub.requests
    told = hub.ask(signers=keys.signers)["msg"]
    assert told.startswith(f"the manifest of {NAME}@{hub.revision} is signed by nobody, and fleet_model_signers asks")
    assert hub.requests == asked


def test_what_is_written_is_signed_once(hub: Hub, keys: Keys) -> None:
    key, signature = str(keys.folder / "own"), hub.path.with_name("manifest.json.sig")
    assert hub.ask(signing_key=key, check=True)["changed"] is True
    assert not signature.exists()
    result = hub.ask(signing_key=key)
    assert (result["changed"], result["signer"].startswith("SHA256:")) == (True, True)
    verified = {"signature": signature.read_text(), "signers": keys.signers}
    assert ask_given(hub, result["text"], **verified)["signer"] == "fleet@site.test"
    assert hub.ask(signing_key=key)["changed"] is False
    assert hub.ask(signing_key=str(keys.folder / "other"))["changed"] is True
    assert "nowhere cannot sign: " in hub.ask(signing_key=str(keys.folder / "nowhere"))["msg"]
