# SPDX-License-Identifier: Apache-2.0
"""proof: digests, what differs from the manifest, and what the stamp says of it later."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import disk, proof
from ansible_collections.h20.fleet.plugins.module_utils._weights.manifest import ManifestError
from unit.weights.support import CONTENT, LARGE, Place, file_of, manifest_of, one_bit, write

SPOILED = ["config.json", LARGE, "sub/deep/notes.txt"]
Damage = Callable[[Path], None]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A host with the revision, proved."""
    made = Place(tmp_path, manifest_of(CONTENT, "e9b33add"), ())
    write(made.destination, CONTENT)
    disk.write_stamp(made.job(), made.destination, proof.stamp_of(made.destination, made.manifest.files))
    return made


@pytest.mark.parametrize("block", [1, 7, 10240, 1 << 24])
@pytest.mark.parametrize("path", CONTENT)
def test_a_digest_is_that_of_the_hub_whatever_the_block(
    path: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "BLOCK", block)
    write(tmp_path, CONTENT)
    file = file_of(path, CONTENT[path])
    assert proof.digest(tmp_path / path, file.algorithm) == file.digest
    assert proof.digest(tmp_path / path, "sha256") == hashlib.sha256(CONTENT[path]).hexdigest()


def absent(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def touched(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replaced(path: Path) -> None:
    """By its equal: same bytes, same time, another inode."""
    twin = path.with_name("twin")
    shutil.copy2(path, twin)
    twin.rename(path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (absent, "{path} is missing"),
        (a_folder, "{path} is missing"),
        (short, "{path} has {less} bytes, the manifest says {size}"),
        (one_bit, "{path} has {algorithm} "),
    ],
)
def test_a_file_that_differs_is_named_and_no_other(damage: Damage, told: str, tmp_path: Path) -> None:
    files = [file_of(path, data) for path, data in CONTENT.items()]
    write(tmp_path, CONTENT)
    with proof.processes() as pool:
        assert proof.differences(tmp_path, files, pool) == {}
        for path in SPOILED:
            damage(tmp_path / path)
        found = proof.differences(tmp_path, files, pool)
    assert sorted(file.path for file in found) == SPOILED
    for file, text in found.items():
        known = {"path": file.path, "less": file.size - 1, "size": file.size, "algorithm": file.algorithm}
        assert text.startswith(told.format(**known))


def test_a_proved_revision_is_complete(place: Place) -> None:
    assert proof.altered(place.job()) == []
    assert proof.is_complete(place.job())


@pytest.mark.parametrize("change", [touched, replaced, absent, short, one_bit])
@pytest.mark.parametrize("path", SPOILED)
def test_a_file_that_is_not_as_it_was_proved_is_named(place: Place, change: Damage, path: str) -> None:
    change(place.destination / path)
    assert proof.altered(place.job()) == [path]
    assert not proof.is_complete(place.job())


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "3"])
def test_a_stamp_that_says_nothing_proves_nothing(place: Place, text: str) -> None:
    place.job().stamp.write_text(text)
    assert proof.altered(place.job()) == [str(place.destination)]


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_an_empty_stamp_proves_no_file(place: Place, text: str) -> None:
    place.job().stamp.write_text(text)
    assert proof.altered(place.job()) == sorted(CONTENT)


def test_without_a_stamp_nothing_is_proved(place: Place) -> None:
    place.job().stamp.unlink()
    assert not proof.is_complete(place.job())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (CONTENT | {"config.json": b'{"a": 2}\n'}, "config.json"),
        ({path: data for path, data in CONTENT.items() if path != "empty.txt"}, "empty.txt"),
        (CONTENT | {"more.txt": b""}, "more.txt"),
        (CONTENT | {"absent.txt": b""}, "absent.txt"),
    ],
)
def test_another_manifest_ends_completeness(place: Place, content: dict[str, bytes], named: str) -> None:
    (place.destination / "more.txt").touch()
    place.manifest = manifest_of(content, "e9b33add")
    assert proof.altered(place.job()) == [named]


def test_without_a_manifest_nothing_can_be_said(place: Place) -> None:
    job = place.job()
    job.manifest.write_text("{}")
    with pytest.raises(ManifestError, match="is no manifest"):
        proof.is_complete(job)
