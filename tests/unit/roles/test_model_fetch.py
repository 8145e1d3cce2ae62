# SPDX-License-Identifier: Apache-2.0
"""model_fetch: one revision fetched and proved, with a folder in place of the hub."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from testbed.hub.repository import tree

PROGRAM = Path(__file__).parents[3] / "roles/model/files/model_fetch.py"
# By its own name, from its own folder: the processes that read the files import it anew.
sys.path.insert(0, str(PROGRAM.parent))
model_fetch: Any = importlib.import_module(PROGRAM.stem)

WEIGHTS = bytes(range(256)) * 40
CONTENT = {
    "config.json": b'{"a": 1}\n',
    "empty.txt": b"",
    "model.safetensors": WEIGHTS,
    "sub/deep/notes.txt": b"notes\n",
}
REVISION = "e9b33add76883f293d6bf61f6bd89b497e80e335"


def write(root: Path, content: dict[str, bytes]) -> None:
    for path, data in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def contents(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` but the stamp."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != model_fetch.STAMP]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def file_of(path: str, content: bytes) -> Any:
    """A file as the manifest names it, by the digests that the hub's tree has."""
    [entry] = tree({path: content})
    algorithm, digest = ("sha256", entry["lfs"]["oid"]) if "lfs" in entry else ("git-sha1", entry["oid"])  # type: ignore[index]
    return model_fetch.File(path, len(content), algorithm, digest)


class Revision:
    """A revision on a host: its job, its hub (a folder) and what was asked of that."""

    def __init__(self, root: Path) -> None:
        self.hub, self.path = root / "hub", root / "job.json"
        self.destination = root / "models/org/name" / REVISION
        self.partial = self.destination.with_name(f"{REVISION}.partial")
        self.asked: list[list[str]] = []
        self.manifest = root / "manifest.json"
        write(self.hub, CONTENT)
        self.write_manifest([vars(file_of(path, data)) for path, data in CONTENT.items()])
        job = {"manifest": str(self.manifest), "destination": str(self.destination)}
        self.path.write_text(json.dumps(job | {"endpoint": "http://hub.test", "workers": 4}))

    def write_manifest(self, files: list[dict[str, Any]]) -> None:
        self.manifest.write_text(json.dumps({"repo": "org/name", "revision": REVISION, "files": files}))

    @property
    def job(self) -> Any:
        return model_fetch.Job.load(self.path)

    def download(self, job: Any, files: Sequence[Any]) -> None:
        """In place of the hub's client, which trusts its note of what it has fetched and writes for its user alone."""
        self.asked.append(sorted(file.path for file in files))
        for file in files:
            note = job.partial / ".cache/huggingface/download" / f"{file.path}.metadata"
            if not note.exists():
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()
                write(job.partial, {file.path: (self.hub / file.path).read_bytes()})
                (job.partial / file.path).chmod(0o600)
                (job.partial / file.path).parent.chmod(0o700)

    def fetch(self) -> None:
        self.asked.clear()
        model_fetch.fetch(self.job)


@pytest.fixture
def revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Revision:
    made = Revision(tmp_path)
    monkeypatch.setattr(model_fetch, "download", made.download)
    return made


@pytest.mark.parametrize("block", [1, 7, 10240, 1 << 24])
@pytest.mark.parametrize("path", CONTENT)
def test_a_digest_is_that_of_the_hub_whatever_the_block(
    path: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_fetch, "BLOCK", block)
    write(tmp_path, CONTENT)
    file = file_of(path, CONTENT[path])
    assert model_fetch.digest(tmp_path / path, file.algorithm) == file.digest
    assert model_fetch.digest(tmp_path / path, "sha256") == hashlib.sha256(CONTENT[path]).hexdigest()


def absent(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


Damage = Callable[[Path], None]
DAMAGES: list[tuple[Damage, str]] = [
    (absent, "{path} is missing"),
    (a_folder, "{path} is missing"),
    (short, "{path} has {less} bytes, the manifest says {size}"),
    (one_bit, "{path} has {algorithm} "),
]
SPOILED = ["config.json", "model.safetensors", "sub/deep/notes.txt"]


@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_a_file_that_differs_is_named_and_no_other(damage: Damage, told: str, tmp_path: Path) -> None:
    files = [file_of(path, data) for path, data in CONTENT.items()]
    write(tmp_path, CONTENT)
    assert model_fetch.differences(tmp_path, files) == {}
    for path in SPOILED:
        damage(tmp_path / path)
    found = model_fetch.differences(tmp_path, files)
    assert [file.path for file in found] == SPOILED
    for file, text in found.items():
        assert text.startswith(
            told.format(path=file.path, less=file.size - 1, size=file.size, algorithm=file.algorithm)
        )


def test_a_revision_becomes_visible_whole_and_readable(revision: Revision) -> None:
    revision.fetch()
    assert contents(revision.destination) == CONTENT
    assert not revision.partial.exists()
    assert model_fetch.is_complete(revision.job)
    modes = {path.stat().st_mode & 0o777 for path in revision.destination.rglob("*") if path.is_file()}
    folders = {
        path.stat().st_mode & 0o777
        for path in (revision.destination, *revision.destination.rglob("*"))
        if path.is_dir()
    }
    assert (modes, folders) == ({0o644}, {0o755})
    assert revision.asked == [sorted(CONTENT)]


def test_a_complete_revision_asks_nobody(revision: Revision) -> None:
    revision.fetch()
    shutil.rmtree(revision.hub)
    revision.fetch()
    assert revision.asked == []


def touched(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replaced(path: Path) -> None:
    """By its equal: same bytes, same time, another inode."""
    twin = path.with_name("twin")
    shutil.copy2(path, twin)
    twin.rename(path)


@pytest.mark.parametrize("change", [touched, replaced, absent, short, one_bit])
@pytest.mark.parametrize("path", SPOILED)
def test_a_file_that_is_not_as_it_was_proved_ends_completeness(revision: Revision, change: Damage, path: str) -> None:
    revision.fetch()
    change(revision.destination / path)
    assert not model_fetch.is_complete(revision.job)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null"])
def test_a_stamp_that_says_nothing_proves_nothing(revision: Revision, text: str) -> None:
    revision.fetch()
    (revision.destination / model_fetch.STAMP).write_text(text)
    assert not model_fetch.is_complete(revision.job)


def test_another_manifest_ends_completeness(revision: Revision) -> None:
    revision.fetch()
    revision.write_manifest(
        [vars(file_of(path, data)) for path, data in (CONTENT | {"config.json": b'{"a": 2}\n'}).items()]
    )
    assert not model_fetch.is_complete(revision.job)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ({}, sum(map(len, CONTENT.values()))),
        ({"model.safetensors": WEIGHTS}, sum(map(len, CONTENT.values())) - len(WEIGHTS)),
        ({"model.safetensors": WEIGHTS[:-1]}, sum(map(len, CONTENT.values()))),
        (CONTENT, 0),
    ],
)
@pytest.mark.parametrize("folder", ["partial", "destination"])
def test_inspection_counts_what_is_still_to_come(
    revision: Revision, folder: str, present: dict[str, bytes], missing: int
) -> None:
    write(getattr(revision, folder), present)
    state = model_fetch.inspect(revision.job)
    assert (state["complete"], state["missing_bytes"]) == (False, missing)
    assert state["destination"] == str(revision.destination)
    assert 0 < state["free_bytes"] <= shutil.disk_usage(revision.hub).total


def test_inspection_of_a_complete_revision(revision: Revision) -> None:
    revision.fetch()
    state = model_fetch.inspect(revision.job)
    assert (state["complete"], state["missing_bytes"]) == (True, 0)


@pytest.mark.parametrize(("damage", "_told"), DAMAGES[:1] + DAMAGES[2:])
def test_a_torn_revision_is_repaired_by_what_is_wrong_alone(revision: Revision, damage: Damage, _told: str) -> None:
    revision.fetch()
    inodes = {path: (revision.destination / path).stat().st_ino for path in CONTENT}
    for path in SPOILED[1:]:
        damage(revision.destination / path)
    revision.fetch()
    assert revision.asked == [SPOILED[1:]]
    assert contents(revision.destination) == CONTENT
    assert model_fetch.is_complete(revision.job)
    kept = {path for path in CONTENT if (revision.destination / path).stat().st_ino == inodes[path]}
    assert {*CONTENT} - {*SPOILED[1:]} <= kept


def test_what_an_earlier_try_has_left_is_proved_and_kept(revision: Revision) -> None:
    write(revision.partial, {"model.safetensors": WEIGHTS, "config.json": b'{"a": 2}\n'})
    revision.fetch()
    assert revision.asked == [sorted({*CONTENT} - {"model.safetensors"})]
    assert contents(revision.destination) == CONTENT


def test_a_file_that_comes_right_at_last_is_accepted(revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    write(revision.hub, {"config.json": b'{"a": 2}\n'})

    def download(job: Any, files: Sequence[Any]) -> None:
        if len(revision.asked) == model_fetch.ATTEMPTS - 1:
            write(revision.hub, CONTENT)
        revision.download(job, files)

    monkeypatch.setattr(model_fetch, "download", download)
    revision.fetch()
    assert revision.asked == [sorted(CONTENT), ["config.json"], ["config.json"]]
    assert model_fetch.is_complete(revision.job)


def test_a_hub_with_other_bytes_is_named_and_nothing_becomes_visible(revision: Revision) -> None:
    one_bit(revision.hub / "model.safetensors")
    with pytest.raises(model_fetch.FetchError) as failed:
        revision.fetch()
    assert revision.asked == [sorted(CONTENT), ["model.safetensors"], ["model.safetensors"]]
    told = str(failed.value)
    assert told.startswith(f"org/name@{REVISION[:12]}: model.safetensors has sha256 ")
    assert "after 3 downloads from http://hub.test -> " in told
    assert "fleet_hub_endpoint" in told
    assert not revision.destination.exists()
    write(revision.hub, CONTENT)
    revision.fetch()
    assert revision.asked == [["model.safetensors"]]


def test_a_torn_revision_that_cannot_be_repaired_is_not_visible_either(revision: Revision) -> None:
    revision.fetch()
    for root in (revision.destination, revision.hub):
        one_bit(root / "config.json")
    with pytest.raises(model_fetch.FetchError, match=r"config\.json"):
        revision.fetch()
    assert not revision.destination.exists()


@pytest.mark.parametrize("path", ["../other", "sub/../../other", "/etc/passwd"])
def test_a_path_outside_the_revision_is_refused(revision: Revision, path: str) -> None:
    revision.write_manifest([vars(file_of(path, b""))])
    with pytest.raises(model_fetch.FetchError, match="names a path outside the revision"):
        revision.fetch()
    assert revision.asked == []


@pytest.mark.parametrize("damage", [absent, short, one_bit])
def test_a_proof_rereads_every_byte(revision: Revision, damage: Damage) -> None:
    revision.fetch()
    model_fetch.prove(revision.job)
    path = revision.destination / "model.safetensors"
    times = path.stat()
    damage(path)
    if path.exists():
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(model_fetch.FetchError, match=r"model\.safetensors .* run the stage again"):
        model_fetch.prove(revision.job)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-IBS", str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_program_inspects_and_proves_with_the_standard_library_alone(revision: Revision) -> None:
    revision.fetch()
    inspected = run("inspect", revision.path)
    assert (inspected.returncode, json.loads(inspected.stdout)["complete"]) == (0, True)
    assert run("prove", revision.path).returncode == run("fetch", revision.path).returncode == 0
    one_bit(revision.destination / "config.json")
    proved = run("prove", revision.path)
    assert (proved.returncode, proved.stderr.count("\n")) == (1, 1)
    assert proved.stderr.startswith(f"error: {revision.destination}: config.json has git-sha1 ")


def test_the_program_says_how_it_is_used_or_what_it_lacks(revision: Revision) -> None:
    for arguments in ((), ("prove",), ("other", revision.path)):
        used = run(*arguments)
        assert (used.returncode, "model_fetch.py fetch JOB" in used.stderr) == (2, True)
    lacking = run("inspect", revision.path.with_name("absent.json"))
    assert (lacking.returncode, lacking.stderr.startswith("error: ")) == (1, True)
