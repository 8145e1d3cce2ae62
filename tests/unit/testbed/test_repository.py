# SPDX-License-Identifier: Apache-2.0
"""The stand-in for NVIDIA's repository: signed, complete in itself, and the same every time."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from testbed import SetupError
from testbed.nvidia import package, repository

FROM_THE_DISTRIBUTION = {"python3", "kmod"}
FOLLOWS_THE_DRIVER = {
    "nvidia-open",
    "nvidia-driver-cuda",
    "nvidia-kernel-open-dkms",
    "nvidia-persistenced",
    "nvidia-fabricmanager",
    "libnvidia-nscq",
}


@pytest.fixture(scope="module")
def key_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def destination(key_home: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        repository.build_repository(Path(folder), key_home=key_home)
        yield Path(folder)


@pytest.fixture
def index(destination: Path) -> list[dict[str, str]]:
    """The paragraphs of Packages: field -> text."""
    text = (destination / repository.PLACE / "Packages").read_text()
    return [dict(re.findall(r"^([\w-]+): (.*)$", paragraph, re.MULTILINE)) for paragraph in text.split("\n\n")]


def test_both_signatures_verify_with_the_published_key_alone(destination: Path, key_home: Path) -> None:
    place = destination / repository.PLACE
    fingerprint = repository.build_repository(destination, key_home=key_home)
    assert re.fullmatch(r"[0-9A-F]{40}", fingerprint)
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--status-fd", "1"]
        subprocess.run([*gpg, "--import", str(place / "3bf863cc.pub")], check=True, capture_output=True)
        for files in (["InRelease"], ["Release.gpg", "Release"]):
            done = subprocess.run(
                [*gpg, "--verify", *(str(place / name) for name in files)], check=True, capture_output=True, text=True
            )
            assert f"VALIDSIG {fingerprint}" in done.stdout


def test_the_index_tells_the_truth_about_every_package(destination: Path, index: list[dict[str, str]]) -> None:
    place = destination / repository.PLACE
    assert {path.name for path in place.glob("*.deb")} == {entry["Filename"].removeprefix("./") for entry in index}
    for entry in index:
        content = (place / entry["Filename"]).read_bytes()
        assert (int(entry["Size"]), entry["SHA256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_second_build_is_a_no_op_and_a_changed_key_is_not(destination: Path, key_home: Path, tmp_path: Path) -> None:
    place = destination / repository.PLACE
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    first = repository.build_repository(destination, key_home=key_home)
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    copy = tmp_path / "mirror"
    shutil.copytree(destination, copy)
    assert repository.build_repository(copy, key_home=tmp_path / "key") != first
    assert (copy / repository.PLACE / "InRelease").read_bytes() != (place / "InRelease").read_bytes()
    assert [path.name for path in (copy / repository.PLACE.parent).iterdir()] == [repository.PLACE.name]


def test_a_package_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    (chosen,) = (one for one in package.plan() if (one.name, one.upstream) == ("nvidia-kernel-open-dkms", "580.173.02"))
    digests = set()
    for attempt in ("one", "two"):
        out = tmp_path / attempt
        out.mkdir()
        digests.add(hashlib.sha256(package.build(chosen, out / "layout", out).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_packages_say_whose_they_are(destination: Path, index: list[dict[str, str]]) -> None:
    assert {entry["Maintainer"] for entry in index} == {"NVIDIA <cudatools@nvidia.com>"}
    debs = sorted((destination / repository.UBUNTU).glob("*.deb"))
    fields = [
        subprocess.run(
            ["dpkg-deb", "--field", deb, "Package", "Maintainer"], check=True, capture_output=True, text=True
        ).stdout
        for deb in debs
    ]
    assert len(fields) == len(package.ubuntu()) > 0
    assert all("@lists.ubuntu.com>" in text for text in fields)
    assert not {one.name for one in package.ubuntu()} & {entry["Package"] for entry in index}


def test_every_dependency_is_met_within_the_repository(index: list[dict[str, str]]) -> None:
    versions = {(entry["Package"], entry["Version"]) for entry in index}
    names = {name for name, _ in versions}
    for entry in index:
        for clause in filter(
            None, re.split(r",\s*", ", ".join(entry.get(kind, "") for kind in ("Depends", "Recommends")))
        ):
            name, relation, version = re.fullmatch(
                r"([\w.+-]+)(?::any)?(?: \((\S+) (\S+)\))?", clause.split(" | ")[0]
            ).groups()  # type: ignore[union-attr]
            assert name in names | FROM_THE_DISTRIBUTION, entry["Package"]
            assert relation != "=" or (name, version) in versions, entry["Package"]


def test_driver_parts_are_bound_to_one_version_but_fabric_manager_and_nscq_are_not(index: list[dict[str, str]]) -> None:
    bound = {entry["Package"] for entry in index if f"(= {entry['Version']})" in entry.get("Depends", "")}
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-persistenced"} <= bound
    assert not {"nvidia-open", "nvidia-fabricmanager", "libnvidia-nscq"} & bound


@pytest.mark.parametrize(
    ("pin", "admits"),
    [("580", {"580.159.04-1", "580.173.02-1"}), ("580.159.04", {"580.159.04-1"}), ("595", {"595.71.05-1"})],
)
def test_a_pin_admits_its_branch_or_version_of_all_that_follows_the_driver(pin: str, admits: set[str]) -> None:
    plan = package.plan()
    (chosen,) = (one for one in plan if one.name == f"nvidia-driver-pinning-{pin}")
    ((path, text),) = chosen.files.items()
    assert path.endswith(".pref")  # apt passes over any other name that has a dot in it
    patterns, version = re.findall(r"^(?:Package|Pin): (.*)$", str(text), re.MULTILINE)
    pinned = {one.name for one in plan if any(fnmatch.fnmatch(one.name, pattern) for pattern in patterns.split())}
    assert pinned >= FOLLOWS_THE_DRIVER
    driver = {one.version for one in plan if one.name == "nvidia-driver-cuda"}
    assert {one for one in driver if fnmatch.fnmatch(one, version.removeprefix("version "))} == admits


def test_modinfo_reads_the_version_of_the_module(tmp_path: Path) -> None:
    modinfo = shutil.which("modinfo", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if modinfo is None:
        pytest.skip("modinfo is not installed (package kmod)")
    module = tmp_path / "nvidia.ko"
    module.write_bytes(package.kernel_module("580.173.02"))
    done = subprocess.run([modinfo, "-F", "version", str(module)], check=True, capture_output=True, text=True)
    assert done.stdout == "580.173.02\n"


def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="apt-get install dpkg gnupg"):
        repository.build_repository(tmp_path, key_home=tmp_path / "key")
