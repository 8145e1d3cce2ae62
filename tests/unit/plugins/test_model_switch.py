# SPDX-License-Identifier: Apache-2.0
"""model_switch: one rename, and which old revisions are deleted when it has happened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _revisions
from unit.plugins.support import run_module

#: From the oldest to the youngest.
FIRST, SECOND, THIRD, FOURTH = (digit * 40 for digit in "1234")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Four proved revisions of a model."""
    folder = tmp_path / "models/org/name"
    for age, name in enumerate((FOURTH, THIRD, SECOND, FIRST)):
        stamp = folder / name / _revisions.STAMP
        stamp.parent.mkdir(parents=True)
        stamp.touch()
        os.utime(stamp, (1000 - age, 1000 - age))
    return folder


def switch(models: Path, name: str, *, check: bool = False, **params: Any) -> dict[str, Any]:
    releases = str(models.parents[2] / "opt")
    return run_module("model_switch", check=check, path=str(models / name), releases=releases, **params)


def release(models: Path, link: str, revision: str, repo: str = "org/name") -> None:
    """A release that a link names, and that serves a revision."""
    folder = models.parents[2] / "opt/releases" / link
    folder.mkdir(parents=True)
    (folder / "release.json").write_text(json.dumps({"model": {"repo": repo, "revision": revision}}))
    (models.parents[2] / "opt" / link).symlink_to(f"releases/{link}")


def there(models: Path) -> list[str]:
    return sorted(path.name[0] for path in models.iterdir() if not path.is_symlink())


def test_the_link_moves_once(models: Path) -> None:
    planned = switch(models, FOURTH, check=True)
    assert (planned["changed"], planned["diff"]["after"]) == (True, f"current -> {FOURTH}\n")
    assert not (models / "current").is_symlink()
    assert switch(models, FOURTH)["changed"]
    assert os.readlink(models / "current") == FOURTH  # noqa: PTH115 (as it is written)
    again = switch(models, FOURTH)
    assert (again["changed"], again["swept"]) == (False, [])
    assert switch(models, THIRD)["diff"]["before"] == f"current -> {FOURTH}\n"


def test_without_a_number_nothing_is_deleted(models: Path) -> None:
    switch(models, FOURTH)
    assert there(models) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("keep", "left"), [(0, ["4"]), (1, ["3", "4"]), (2, ["2", "3", "4"]), (9, ["1", "2", "3", "4"])]
)
def test_the_youngest_stay(models: Path, keep: int, left: list[str]) -> None:
    planned = switch(models, FOURTH, check=True, keep=keep)
    assert there(models) == ["1", "2", "3", "4"]
    assert switch(models, FOURTH, keep=keep)["swept"] == planned["swept"]
    assert there(models) == left


def test_only_a_move_deletes(models: Path) -> None:
    switch(models, FOURTH)
    assert not switch(models, FOURTH, keep=0)["changed"]
    assert there(models) == ["1", "2", "3", "4"]


def test_what_releases_serve_from_or_go_back_to_stays(models: Path) -> None:
    release(models, "current", THIRD)
    release(models, "previous", FIRST)
    release(models, "rollback", SECOND, repo="org/other")
    switch(models, FOURTH, keep=0)
    assert there(models) == ["1", "3", "4"]


def test_what_was_not_proved_here_or_is_not_whole_is_nobodys_to_delete(models: Path) -> None:
    (models / SECOND / _revisions.STAMP).unlink()
    (models / f"{FIRST}.partial").mkdir()
    (models / "mine").mkdir()
    switch(models, FOURTH, keep=0)
    assert sorted(path.name for path in models.iterdir()) == sorted(
        [SECOND, FOURTH, f"{FIRST}.partial", "mine", "current"]
    )


def test_a_deletion_that_was_cut_off_is_ended(models: Path) -> None:
    switch(models, FOURTH)
    (models / FIRST).rename(models / f"{FIRST}.swept")
    result = switch(models, FOURTH, keep=1)
    assert (result["changed"], result["swept"]) == (True, [str(models / f"{FIRST}.swept")])
    assert there(models) == ["2", "3", "4"]


def test_what_is_not_there_is_refused_but_for_check_mode(models: Path) -> None:
    absent = "5" * 40
    assert switch(models, absent)["msg"] == f"{models / absent} is not there -> run the stage again: --tags model"
    assert switch(models, absent, check=True)["changed"]
    assert switch(models / "nowhere", absent, check=True, keep=1)["changed"]
    assert switch(models, FOURTH, keep=-1)["msg"].startswith("model_keep_revisions is -1 -> ")


def test_a_folder_in_place_of_the_link_is_refused(models: Path) -> None:
    (models / "current").mkdir()
    assert " cannot be changed: Is a directory -> " in switch(models, FOURTH)["msg"]
