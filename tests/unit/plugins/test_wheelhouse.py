# SPDX-License-Identifier: Apache-2.0
"""wheelhouse: a folder compared with locks by hash, and a real pip that fetches what is missing from a folder of wheels."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.modules import wheelhouse
from unit.plugins.support import run_module, write_program


def make_wheel(folder: Path, name: str, version: str, content: str = "") -> Path:
    """A wheel that pip takes; other content is another hash."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"content = {content!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class House:
    """A wheelhouse, an index in the form of a folder, and locks."""

    def __init__(self, root: Path) -> None:
        self.root, self.path, self.index, self.stamp = root, root / "wheels", root / "index", root / "stamp.json"
        self.wheels = [make_wheel(self.index, name, "1.0") for name in ("aaa", "bbb_b", "ccc", "ddd", "eee", "fff")]
        self.lock = self.write_lock("lock.txt", *self.wheels)
        self.pip = Path(sys.executable)

    def write_lock(self, name: str, *wheels: Path) -> Path:
        lines = []
        for wheel in wheels:
            distribution, version = wheel.name.split("-")[:2]
            lines.append(
                f"{distribution.replace('_', '-')}=={version} \\\n    --hash=sha256:{sha256(wheel)}\n    # via x\n"
            )
        path = self.root / name
        path.write_text("".join(lines))
        return path

    def run(self, *, check: bool = False, **params: Any) -> dict[str, Any]:
        params = {"locks": [str(self.lock)], "python": sys.executable} | params
        return run_module("wheelhouse", check=check, path=str(self.path), stamp=str(self.stamp), **params)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    house = House(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(house.index))
    return house


def test_a_lock_is_read_by_pin_and_hashes() -> None:
    hashes = f"--hash=sha256:{'a' * 64} \\\n  --hash=sha256:{'b' * 64}"
    text = f"# made by uv\n--index-url x\nFoo.Bar[extra]==1.0 ; python_version >= '3' \\\n  {hashes}\n  # via baz\n"
    (pin,) = wheelhouse.pinned(text)
    assert (str(pin), pin.hashes) == ("foo-bar==1.0", frozenset({"a" * 64, "b" * 64}))


def test_a_pin_without_a_hash_is_refused(house: House) -> None:
    house.lock.write_text("aaa==1.0\n")
    result = house.run()
    assert result["failed"]
    assert "aaa==1.0 has no sha256 -> " in result["msg"]


def test_an_empty_folder_is_filled_and_then_left_alone(house: House) -> None:
    size = sum(wheel.stat().st_size for wheel in house.wheels)
    first = house.run()
    assert (first["changed"], first["files"], first["bytes"], first["size"]) == (True, 6, size, size)
    assert house.names == sorted(wheel.name for wheel in house.wheels)
    assert first["diff"]["after"].splitlines() == house.names
    stamp = house.stamp.stat().st_mtime_ns
    again = house.run()
    assert (again["changed"], again["files"], again["bytes"], again["diff"]) == (False, 6, 0, {})
    assert house.stamp.stat().st_mtime_ns == stamp
    assert first["smallest"]["sha256"] == sha256(house.path / first["smallest"]["name"])


def test_check_mode_says_what_would_come_and_fetches_nothing(house: House) -> None:
    result = house.run(check=True)
    assert (result["changed"], len(result["missing"]), house.path.exists(), house.stamp.exists()) == (
        True,
        6,
        False,
        False,
    )
    house.lock.unlink()
    assert house.run(check=True)["changed"] is False
    assert "there is no lock" in house.run()["msg"]


def test_only_what_is_missing_is_fetched(house: House) -> None:
    house.run()
    for name in ("aaa", "ccc"):
        (house.path / f"{name}-1.0-py3-none-any.whl").unlink()
    result = house.run()
    assert (result["missing"], result["files"]) == (["aaa==1.0", "ccc==1.0"], 6)
    assert result["bytes"] == sum(wheel.stat().st_size for wheel in house.wheels if wheel.name[:3] in ("aaa", "ccc"))


def test_what_has_not_changed_is_not_read_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.run()
    read: list[str] = []
    real = wheelhouse.sha256_of

    def counted(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(wheelhouse, "sha256_of", counted)
    house.run()
    assert read == []
    os.utime(house.path / "aaa-1.0-py3-none-any.whl")
    assert house.run()["changed"] is False
    assert read == ["aaa-1.0-py3-none-any.whl"]


def test_a_wheel_that_was_tampered_with_is_named_and_fetched_again(house: House) -> None:
    house.run()
    wheel = house.path / "ccc-1.0-py3-none-any.whl"
    make_wheel(house.path, "ccc", "1.0", "evil")
    looked = house.run(check=True)
    assert (looked["changed"], looked["altered"]) == (True, [wheel.name])
    result = house.run()
    assert (result["changed"], result["altered"], result["files"]) == (True, [wheel.name], 6)
    assert sha256(wheel) == sha256(house.index / wheel.name)
    assert house.run()["changed"] is False


def test_a_tampered_wheel_is_refused_by_name_where_nobody_has_another(house: House) -> None:
    house.run()
    make_wheel(house.path, "ccc", "1.0", "evil")
    (house.index / "ccc-1.0-py3-none-any.whl").unlink()
    for _attempt in range(2):
        result = house.run()
        assert result["failed"]
        assert "ccc-1.0-py3-none-any.whl is not what the lock says" in result["msg"]
        assert "ccc==1.0: no wheel of it that fits this host is served" in result["msg"]


def test_a_wheel_that_is_served_with_another_hash_does_not_come_in(house: House) -> None:
    evil = make_wheel(house.index, "bbb_b", "1.0", "evil")
    result = house.run()
    assert result["failed"]
    assert f"bbb-b==1.0: the file that is served has the hash {sha256(evil)}, which is not in the lock" in result["msg"]
    assert house.names == sorted(wheel.name for wheel in house.wheels if wheel != evil)  # the rest is kept
    make_wheel(house.index, "bbb_b", "1.0")
    assert house.run()["missing"] == ["bbb-b==1.0"]


def test_what_a_run_that_was_cut_off_left_is_swept(house: House) -> None:
    (house.path / ".part" / "x").mkdir(parents=True)
    (house.path / ".part" / "x" / "half.whl").write_text("half")
    house.run()
    assert house.names == sorted(wheel.name for wheel in house.wheels)


def test_releases_share_the_folder_and_only_keep_deletes(house: House) -> None:
    old = house.write_lock("old.txt", make_wheel(house.index, "ooo", "0.1"))
    house.run(locks=[str(house.lock), str(old)])
    assert house.run()["changed"] is False
    assert house.run(keep=[str(old)])["changed"] is False
    looked = house.run(check=True, keep=[])
    assert (looked["changed"], looked["deleted"]) == (True, ["ooo-0.1-py3-none-any.whl"])
    assert house.run(keep=[])["deleted"] == ["ooo-0.1-py3-none-any.whl"]
    assert house.names == sorted(wheel.name for wheel in house.wheels)


def test_a_wheel_of_another_release_is_not_taken_for_a_tampered_one(house: House) -> None:
    house.run()
    other = make_wheel(house.path, "aaa", "2.0")
    result = house.run()
    assert (result["changed"], result["altered"], other.exists()) == (False, [], True)


def test_a_missing_wheel_without_an_interpreter_is_named(house: House) -> None:
    result = house.run(python=None)
    assert result["failed"]
    assert "aaa==1.0 is missing, and no interpreter is named" in result["msg"]


def test_an_interpreter_without_pip_takes_the_one_that_is_named(tmp_path: Path) -> None:
    bare = write_program(tmp_path / "bare", "sys.exit(1)")
    assert wheelhouse.pip_command(str(bare), "/x/pip") == ["/x/pip", "--python", str(bare)]
    with pytest.raises(ValueError, match="has no pip -> "):
        wheelhouse.pip_command(str(bare), None)
