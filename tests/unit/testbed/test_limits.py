# SPDX-License-Identifier: Apache-2.0
"""The limit that many hosts meet: raised where that is allowed, put back, and named where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from testbed import SetupError, limits


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the limit, on a machine as most are."""
    monkeypatch.setattr(limits, "INSTANCES", tmp_path / "max_user_instances")
    monkeypatch.setattr(limits, "BEFORE", tmp_path / "before")
    limits.INSTANCES.write_text("128\n", encoding="ascii")
    return limits.INSTANCES


def test_it_is_raised_once_and_put_back(machine: Path) -> None:
    limits.ensure(2)
    limits.ensure(16)
    assert int(machine.read_text()) == limits.WANTED
    limits.restore()
    limits.restore()
    assert machine.read_text() == "128\n"


def test_a_higher_one_is_left_alone(machine: Path) -> None:
    machine.write_text("8192\n", encoding="ascii")
    limits.ensure(16)
    limits.restore()
    assert machine.read_text() == "8192\n"


def test_who_may_not_raise_it_is_told_what_to_type_where_it_matters(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    limits.ensure(2)
    with pytest.raises(SetupError, match=r"sudo sysctl -w fs\.inotify\.max_user_instances=1024"):
        limits.ensure(16)
    assert machine.read_text() == "128\n"
