# SPDX-License-Identifier: Apache-2.0
"""kernel_settings: parameters set where they differ, and named where they cannot be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.modules import kernel_settings
from unit.plugins.support import run_module

READ_ONLY = Path("/proc/sys/kernel/ostype")  # to root as well


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("always [madvise] never\n", "madvise"),
        ("[always] madvise never\n", "always"),
        ("4096\t131072\t6291456\n", "4096 131072 6291456"),
        ("1\n", "1"),
        ("", ""),
    ],
)
def test_the_value_of_a_parameter(text: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "parameter").write_text(text)
    assert kernel_settings.current_value(tmp_path / "parameter") == value


@pytest.mark.parametrize("check", [False, True])
def test_what_differs_is_set_unless_in_check_mode(tmp_path: Path, *, check: bool) -> None:
    before = {"same": "1\n", "number": "60\n", "choice": "always [madvise] never\n", "chosen": "[always] never\n"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    wanted = {"same": 1, "number": 0, "choice": "always", "chosen": "always"}
    settings = {f"{tmp_path}/{name}": value for name, value in wanted.items()}
    result = run_module("kernel_settings", check=check, settings=settings)
    diff = {
        "before": f"{tmp_path}/number = 60\n{tmp_path}/choice = madvise\n",
        "after": f"{tmp_path}/number = 0\n{tmp_path}/choice = always\n",
    }
    assert (result["changed"], result["unsettable"], result["diff"]) == (True, [], diff)
    after = {name: (tmp_path / name).read_text() for name in before}
    assert after == (before if check else before | {"number": "0\n", "choice": "always\n"})


def test_setting_what_is_set_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("60\n")
    results = [run_module("kernel_settings", settings={f"{tmp_path}/number": 0})["changed"] for _run in range(2)]
    assert results == [True, False]


def test_a_pattern_sets_everything_that_it_matches(tmp_path: Path) -> None:
    for core in range(3):
        (tmp_path / f"cpu{core}").mkdir()
        (tmp_path / f"cpu{core}/governor").write_text("powersave\n")
    run_module("kernel_settings", settings={f"{tmp_path}/cpu*/governor": "performance"})
    assert {path.read_text() for path in tmp_path.glob("*/governor")} == {"performance\n"}


def test_what_does_not_exist_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    if not READ_ONLY.exists() or os.access(READ_ONLY, os.W_OK):
        pytest.skip("this kernel shows no parameter that nobody may write")
    absent = f"{tmp_path}/cpu*/governor"
    result = run_module("kernel_settings", settings={str(READ_ONLY): "other", absent: "performance"})
    assert (result["changed"], result["unsettable"]) == (False, [str(READ_ONLY), absent])
    right = READ_ONLY.read_text().strip()
    assert run_module("kernel_settings", settings={str(READ_ONLY): right})["unsettable"] == []


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """Two parameters of a host that were set, and what was there before kept."""
    (tmp_path / "swappiness").write_text("60\n")
    (tmp_path / "thp").write_text("[always] madvise never\n")
    result = tune(tmp_path, swappiness=10, thp="madvise")
    assert result["changed"]
    return tmp_path


def tune(folder: Path, *, check: bool = False, **settings: object) -> dict[str, Any]:
    wanted = {f"{folder}/{name}": value for name, value in settings.items()}
    return run_module("kernel_settings", check=check, settings=wanted, record=str(folder / "lib/record.json"))


def values(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("swappiness", "thp")]


def test_what_was_there_before_is_put_back(tuned: Path) -> None:
    assert not tune(tuned, swappiness=10, thp="madvise")["changed"]
    planned = tune(tuned, check=True)
    assert (planned["changed"], values(tuned)) == (True, ["10\n", "madvise\n"])
    assert tune(tuned)["diff"] == planned["diff"]
    assert values(tuned) == ["60\n", "always\n"]
    assert not (tuned / "lib/record.json").exists()
    assert not tune(tuned)["changed"]


def test_first_value_counts_however_often_another_is_wanted(tuned: Path) -> None:
    tune(tuned, swappiness=1, thp="madvise")
    (tuned / "swappiness").write_text("33\n")
    tune(tuned, swappiness=5, thp="madvise")
    tune(tuned)
    assert values(tuned) == ["60\n", "always\n"]


def test_parameter_that_is_wanted_no_longer_is_put_back(tuned: Path) -> None:
    result = tune(tuned, thp="madvise")
    assert (result["changed"], values(tuned)) == (True, ["60\n", "madvise\n"])


def test_value_that_somebody_else_has_set_since_stays_and_is_named(tuned: Path) -> None:
    (tuned / "swappiness").write_text("33\n")
    result = tune(tuned)
    assert result["left"] == [f"{tuned}/swappiness is 33, neither 10 as it was set here nor 60 as before"]
    assert values(tuned) == ["33\n", "always\n"]
    assert not (tuned / "lib/record.json").exists()


def test_what_is_gone_or_back_already_is_forgotten(tuned: Path) -> None:
    (tuned / "swappiness").write_text("60\n")
    (tuned / "thp").unlink()
    result = tune(tuned)
    assert (result["changed"], result["left"]) == (False, [])
    assert not (tuned / "lib/record.json").exists()


def test_value_that_was_right_from_the_first_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "swappiness").write_text("10\n")
    tune(tmp_path, swappiness=10)
    tune(tmp_path)
    assert (tmp_path / "swappiness").read_text() == "10\n"


def test_torn_record_is_named(tuned: Path) -> None:
    (tuned / "lib/record.json").write_text("{")
    assert "record.json is torn" in tune(tuned, swappiness=10)["msg"]
