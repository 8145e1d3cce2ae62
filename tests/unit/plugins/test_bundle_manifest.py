# SPDX-License-Identifier: Apache-2.0
"""bundle_manifest with ssh-keygen's own signatures: what was changed on the way is named, all of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from unit.plugins.support import run_module

FILES = {
    "wheels/vllm-0.32.0-py3-none-any.whl": b"wheel",
    "locks/demo.txt": b"vllm==0.32.0 --hash=sha256:00\n",
    "releases/demo.yml": b"description: demo\n",
    "apt/debian/dists/bookworm/InRelease": b"signed by another\n",
    "collections/h20-fleet-1.0.0.tar.gz": b"tarball",
}
FACTS = {"release": "demo", "distribution": "Debian 12"}


@dataclass
class Bundle:
    """A folder with a signed manifest, and the keys of two people."""

    root: Path
    keys: Path

    @property
    def signers(self) -> str:
        return f'fleet@site.test namespaces="h20-fleet-bundle" {self.public("own")}'

    def public(self, name: str) -> str:
        return (self.keys / f"{name}.pub").read_text(encoding="ascii").strip()

    def write(self, key: str = "own", **params: Any) -> dict[str, Any]:
        return self.run(state="written", signing_key=str(self.keys / key), **{"facts": FACTS} | params)

    def run(self, **params: Any) -> dict[str, Any]:
        return run_module("bundle_manifest", path=str(self.root), stamp=str(self.keys / "work/stamp.json"), **params)

    def prove(self, **params: Any) -> dict[str, Any]:
        return self.run(**{"signers": self.signers} | params)

    def lines(self, **params: Any) -> list[str]:
        """What a bundle is refused for."""
        answer = self.prove(**params)
        assert answer["failed"]
        lines = answer["msg"].splitlines()
        assert all(" -> " in line for line in lines)
        return [line.partition(" -> ")[0] for line in lines]


def make_key(path: Path, passphrase: str = "") -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "fleet", "-f", str(path)]
    subprocess.run(command, check=True)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle", tmp_path / "keys")
    made.keys.mkdir()
    for name in ("own", "other"):
        make_key(made.keys / name)
    for name, content in FILES.items():
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        (made.root / name).write_bytes(content)
    assert made.write()["changed"] is True
    return made


def test_the_manifest_names_every_file(bundle: Bundle) -> None:
    manifest = json.loads((bundle.root / "manifest.json").read_text())
    assert manifest.pop("created").endswith("Z")
    assert manifest == {
        **FACTS,
        "files": [
            {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(FILES.items())
        ],
    }


def test_a_bundle_as_it_was_signed_is_proved(bundle: Bundle) -> None:
    answer = bundle.prove()
    assert (answer["files"], answer["bytes"]) == (len(FILES), sum(map(len, FILES.values())))
    assert (answer["changed"], answer["signer"], answer["facts"]["release"]) == (False, "fleet@site.test", "demo")


def test_it_is_proved_where_it_has_been_carried_to(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.root, tmp_path / "carried")
    (bundle.keys / "work/stamp.json").unlink()
    bundle.root = tmp_path / "carried"
    assert bundle.prove()["files"] == len(FILES)


def test_signing_again_changes_nothing(bundle: Bundle) -> None:
    before = {path.name: path.read_bytes() for path in bundle.root.glob("manifest.json*")}
    assert bundle.write()["changed"] is False
    assert {path.name: path.read_bytes() for path in bundle.root.glob("manifest.json*")} == before


@pytest.mark.parametrize(
    "change",
    [
        lambda bundle: (bundle.root / "wheels/more.whl").write_bytes(b"more"),
        lambda bundle: (bundle.root / "locks/demo.txt").unlink(),
        lambda bundle: (bundle.root / "manifest.json.sig").unlink(),
        lambda bundle: (bundle.root / "manifest.json").write_text("{}"),
        lambda bundle: (bundle.root / "manifest.json.sig").write_text("cut off"),
    ],
    ids=["one more", "one less", "no signature", "no manifest", "a torn signature"],
)
def test_what_has_changed_is_signed_anew(bundle: Bundle, change: Callable[[Bundle], object]) -> None:
    change(bundle)
    assert bundle.run(state="written", signing_key=str(bundle.keys / "own"), facts=FACTS)["changed"] is True
    bundle.prove()


def test_another_key_signs_anew(bundle: Bundle) -> None:
    assert bundle.write("other")["changed"] is True
    assert bundle.write("other")["changed"] is False


def test_what_was_hashed_is_not_read_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.h20.fleet.plugins.module_utils import _bundle  # noqa: PLC0415

    (bundle.root / "locks/demo.txt").write_bytes(b"another lock")
    read: list[str] = []
    digest = _bundle.digest

    def noted(path: Path, algorithm: str = "sha256") -> str:
        read.append(path.name)
        return digest(path, algorithm)

    monkeypatch.setattr(_bundle, "digest", noted)
    assert bundle.write()["changed"] is True
    bundle.prove()
    assert read == ["demo.txt"]
    bundle.prove(full=True)
    assert len(read) == 1 + len(FILES)


def tamper(bundle: Bundle, name: str, content: bytes) -> None:
    """Other bytes of the same length with the same modification time."""
    path = bundle.root / name
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wheels/vllm-0.32.0-py3-none-any.whl", "WHEEL"),
        ("locks/demo.txt", "LOCK"),
        ("releases/demo.yml", "RELEASE"),
        ("apt/debian/dists/bookworm/InRelease", "PACKAGE"),
        ("collections/h20-fleet-1.0.0.tar.gz", "FILE"),
    ],
)
def test_a_tampered_file_is_refused_by_name(bundle: Bundle, name: str, kind: str) -> None:
    bundle.prove()
    content = FILES[name][::-1]
    tamper(bundle, name, content)
    old, new = (hashlib.sha256(text).hexdigest() for text in (FILES[name], content))
    assert bundle.lines() == [f"{kind}: {name} has sha256 {new}, the manifest says {old}"]


def test_all_that_is_wrong_is_named_at_once(bundle: Bundle) -> None:
    (bundle.root / "wheels/vllm-0.32.0-py3-none-any.whl").unlink()
    (bundle.root / "locks/demo.txt").write_bytes(b"cut")
    (bundle.root / "apt/evil.deb").write_bytes(b"")
    (bundle.root / "releases/link.yml").symlink_to("demo.yml")
    (bundle.root / "collections/link").symlink_to("/etc")
    assert sorted(bundle.lines()) == [
        "FILE: collections/link is no plain file",
        "FILE: releases/link.yml is no plain file",
        "LOCK: locks/demo.txt has 3 bytes, the manifest says 30",
        "PACKAGE: apt/evil.deb is not in the manifest",
        "WHEEL: wheels/vllm-0.32.0-py3-none-any.whl is missing",
    ]


def test_a_manifest_that_was_changed_is_refused(bundle: Bundle) -> None:
    text = (bundle.root / "manifest.json").read_text()
    (bundle.root / "manifest.json").write_text(text.replace('"demo"', '"evil"'))
    assert bundle.lines() == [
        "SIGNATURE: manifest.json.sig is not one of manifest.json as it is: one of the two was changed"
    ]


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"])
def test_a_signature_that_is_none_is_refused(bundle: Bundle, content: bytes | None) -> None:
    (bundle.root / "manifest.json.sig").unlink()
    if content is not None:
        (bundle.root / "manifest.json.sig").write_bytes(content)
    (line,) = bundle.lines()
    assert line.startswith("SIGNATURE: manifest.json.sig is ")


def test_an_unknown_signer_is_refused(bundle: Bundle) -> None:
    bundle.write("other")
    (line,) = bundle.lines()
    assert line.startswith("SIGNER: manifest.json was signed by the key SHA256:")


@pytest.mark.parametrize(
    "signers",
    ["", "no key", 'fleet@site.test namespaces="file" {key}', "# {key}"],
    ids=["nobody", "text", "else", "comment"],
)
def test_a_key_that_may_not_sign_bundles_is_unknown(bundle: Bundle, signers: str) -> None:
    (line,) = bundle.lines(signers=signers.format(key=bundle.public("own")))
    assert line.startswith("SIGNER: ")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"files": [{"path": "a"}]}', '{"files": [1]}'])
def test_what_is_no_bundle_is_refused(bundle: Bundle, content: str | None) -> None:
    (bundle.root / "manifest.json").unlink()
    if content is not None:
        (bundle.root / "manifest.json").write_text(content)
    assert " is no " in bundle.lines()[-1]


def test_weights_that_come_by_another_way_are_left_to_their_own_manifest(bundle: Bundle) -> None:
    weights = bundle.root / "models/org/name/rev/model.safetensors"
    weights.parent.mkdir(parents=True)
    bundle.write(facts={**FACTS, "elsewhere": ["models/org/name/rev"]})
    weights.write_bytes(b"weights")
    assert bundle.prove()["files"] == len(FILES)
    (weights.parent.parent / "other").write_bytes(b"")
    assert bundle.lines() == ["FILE: models/org/name/other is not in the manifest"]


@pytest.mark.parametrize("key", ["absent", "locked"])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(bundle: Bundle, key: str) -> None:
    make_key(bundle.keys / "locked", "passphrase")
    (bundle.root / "manifest.json").unlink()
    answer = bundle.write(key)
    assert answer["failed"]
    assert "ssh-keygen -t ed25519" in answer["msg"]
    assert not (bundle.root / "manifest.json").exists()


def test_check_mode_writes_nothing(bundle: Bundle) -> None:
    (bundle.root / "wheels/more.whl").write_bytes(b"more")
    before = (bundle.root / "manifest.json").read_bytes()
    params = {"state": "written", "signing_key": str(bundle.keys / "own"), "facts": FACTS}
    assert bundle.run(check=True, **params)["changed"] is True
    assert (bundle.root / "manifest.json").read_bytes() == before
