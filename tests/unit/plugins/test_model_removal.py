# SPDX-License-Identifier: Apache-2.0
"""model_removal: the files that manifests name, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _revisions
from unit.plugins.support import run_module

REVISION = "1" * 40
FILES = {"config.json": b"{}", "inference/configs/tiny.json": b"[]", "model-00001.safetensors": b"weights"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A complete revision, current, with its manifest and its job."""
    write_job(tmp_path, "name-1", "org/name", distribution="source")
    return tmp_path / "models"


def write_job(root: Path, instance: str, repo: str, *, distribution: str, folder: str = "models") -> None:
    destination = root / folder / repo / REVISION
    for name, content in FILES.items():
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (destination / name).write_bytes(content)
    (destination / _revisions.STAMP).write_text("{}")
    (destination.parent / "current").symlink_to(REVISION)
    files = [{"path": name, "size": len(FILES[name]), "algorithm": "sha256", "digest": "0" * 64} for name in FILES]
    jobs = root / "jobs"
    jobs.mkdir(exist_ok=True)
    manifest = {"repo": repo, "revision": REVISION, "files": files}
    (jobs / f"{instance}.manifest.json").write_text(json.dumps(manifest))
    job = {
        "manifest": str(jobs / f"{instance}.manifest.json"),
        "destination": str(destination),
        "stamp": str(destination / _revisions.STAMP),
        "state": str(root / "state"),
        "host": "h20-01",
        "distribution": distribution,
        "sources": [],
    }
    (jobs / f"{instance}.job.json").write_text(json.dumps(job))


def remove(models: Path, *, check: bool = False) -> dict[str, Any]:
    return run_module("model_removal", check=check, root=str(models), jobs=str(models.parent / "jobs"))


def there(models: Path) -> list[str]:
    return sorted(str(path.relative_to(models)) for path in models.rglob("*") if not path.is_dir() or path.is_symlink())


def test_revision_goes_with_all_that_it_leaves_empty(models: Path) -> None:
    before = there(models)
    planned = remove(models, check=True)
    assert there(models) == before
    assert remove(models) == planned
    assert planned["removed"] == [f"{models}/org/name/{REVISION}"]
    assert planned["freed_bytes"] == sum(map(len, FILES.values())) + len("{}")
    assert list(models.iterdir()) == []
    assert models.is_dir(), "the folder of all weights is the site's"
    assert not remove(models)["changed"]


def test_what_is_still_being_fetched_goes(models: Path) -> None:
    revision = models / "org/name" / REVISION
    revision.rename(revision.with_name(f"{REVISION}.partial"))
    assert remove(models)["changed"]
    assert list(models.iterdir()) == []


def test_what_no_manifest_names_stays_and_is_named(models: Path) -> None:
    own = models / "org/name" / REVISION / "inference/notes.txt"
    own.write_text("mine")
    (models / "org/name/2222").mkdir()
    assert remove(models)["left"] == [str(own)]
    assert there(models) == [
        "org/name/1111111111111111111111111111111111111111/inference/notes.txt",
        "org/name/current",
    ]
    assert (models / "org/name/2222").is_dir()
    assert not remove(models)["changed"]


def test_shared_filesystem_and_other_folders_are_not_touched(models: Path) -> None:
    write_job(models.parent, "shared-1", "org/shared", distribution="shared")
    write_job(models.parent, "else-1", "org/else", distribution="source", folder="elsewhere")
    (models.parent / "jobs/torn-1.job.json").write_text("{")
    assert remove(models)["removed"] == [f"{models}/org/name/{REVISION}"]
    assert len(there(models)) == len(FILES) + 2
    assert len(there(models.parent / "elsewhere")) == len(FILES) + 2


def test_weights_that_an_earlier_removal_left_go_by_what_was_proved_of_them(models: Path) -> None:
    revision = models / "org/name" / REVISION
    (models.parent / "passwd").write_text("mine")
    outside = ("../../../../passwd", str(models.parent / "passwd"))
    stamp = {name: ["0" * 64] for name in (*FILES, *outside)}
    (revision / _revisions.STAMP).write_text(json.dumps(stamp))
    for path in (models.parent / "jobs").iterdir():
        path.unlink()
    assert remove(models)["removed"] == [str(revision)]
    assert list(models.iterdir()) == []
    assert (models.parent / "passwd").exists()
