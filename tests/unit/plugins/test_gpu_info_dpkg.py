# SPDX-License-Identifier: Apache-2.0
"""What dpkg says of a host: whose packages a driver is of, what was interrupted, and who holds the lock."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.h20.fleet.plugins.module_utils import _dpkg

NVIDIA = "NVIDIA <cudatools@nvidia.com>"
DRIVER = "580.173.02"


def line(
    name: str, *, maintainer: str = NVIDIA, want: str = "install", status: str = "installed", flag: str = "ok"
) -> str:
    return "\t".join([name, f"{DRIVER}-1", DRIVER, maintainer, want, status, flag])


def packages(*lines: str) -> list[_dpkg.Package]:
    return _dpkg.parse_packages("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("maintainer", "archive"),
    [
        (NVIDIA, "nvidia"),
        ("Ubuntu Core Developers <ubuntu-devel-discuss@lists.ubuntu.com>", "ubuntu"),
        ("Debian NVIDIA Maintainers <pkg-nvidia-devel@lists.alioth.debian.org>", "debian"),
        ("Debian NVIDIA Maintainers <pkg-nvidia-devel@alioth-lists.debian.net>", "debian"),
        ("Somebody <me@notnvidia.com>", "other"),
        ("NVIDIA <drivers@nvidia.com.example.org>", "other"),
        ("nvidia.com", "nvidia"),
        ("", "other"),
    ],
)
def test_the_archive_follows_from_the_maintainers_address(maintainer: str, archive: str) -> None:
    assert _dpkg.archive(maintainer) == archive
    assert [entry["archive"] for entry in _dpkg.driver_packages(packages(line("libcuda1", maintainer=maintainer)))] == [
        archive
    ]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("nvidia-open", True),
        ("nvidia-driver-580-server", True),
        ("nvidia-driver-pinning-580.173.02", True),
        ("nvidia-fabricmanager", True),
        ("libnvidia-nscq", True),
        ("libcuda1", True),
        ("xserver-xorg-video-nvidia-580", True),
        ("firmware-nvidia-gsp", True),
        ("cuda-drivers-580", True),
        ("datacenter-gpu-manager-4-cuda13", True),
        ("nvidia-container-toolkit", False),
        ("nvidia-container-toolkit-base", False),
        ("libnvidia-container1", False),
        ("libnvidia-container-tools", False),
        ("cuda-toolkit-13-0", False),
        ("cuda-nvcc-13-0", False),
        ("linux-image-amd64", False),
    ],
)
def test_the_families_of_a_driver_are_listed_and_no_others(name: str, counts: bool) -> None:
    assert [entry["name"] for entry in _dpkg.driver_packages(packages(line(name)))] == ([name] if counts else [])


def test_a_package_says_its_versions_state_and_hold() -> None:
    [entry] = _dpkg.driver_packages(packages(line("nvidia-open", want="hold", status="unpacked")))
    assert entry == {
        "name": "nvidia-open",
        "version": f"{DRIVER}-1",
        "upstream_version": DRIVER,
        "archive": "nvidia",
        "status": "unpacked",
        "held": True,
    }


@pytest.mark.parametrize("status", ["config-files", "not-installed"])
def test_what_is_gone_but_for_its_configuration_is_not_listed(status: str) -> None:
    assert packages(line("nvidia-open", want="deinstall", status=status)) == []


@pytest.mark.parametrize("text", ["", "\n\n", "dpkg-query: error\n", "a\tb\n"])
def test_what_dpkg_query_does_not_print_is_no_package(text: str) -> None:
    assert _dpkg.parse_packages(text) == []


@pytest.mark.parametrize(
    ("name", "is_metapackage"),
    [
        ("linux-image-generic", True),
        ("linux-image-generic-hwe-22.04", True),
        ("linux-image-virtual", True),
        ("linux-image-amd64", True),
        ("linux-image-cloud-amd64", True),
        ("linux-image-nvidia-64k-hwe-24.04", True),
        ("linux-image-6.8.0-45-generic", False),
        ("linux-image-unsigned-6.8.0-45-generic", False),
        ("linux-headers-6.8.0-45-generic", False),
        ("linux-headers-generic", True),
    ],
)
def test_a_metapackage_of_the_kernel_names_no_version(name: str, is_metapackage: bool) -> None:
    assert _dpkg.kernel_metapackages(packages(line(name))) == (
        [{"name": name, "held": False}] if is_metapackage else []
    )
    assert _dpkg.kernel_metapackages(packages(line(name, status="unpacked"))) == []


@pytest.mark.parametrize(
    ("status", "flag", "counts"),
    [
        ("installed", "ok", False),
        ("half-installed", "ok", True),
        ("unpacked", "ok", True),
        ("half-configured", "ok", True),
        ("installed", "reinstreq", True),
        ("triggers-awaited", "ok", False),
        ("triggers-pending", "ok", False),
    ],
)
def test_a_package_that_was_not_finished_is_named_whatever_it_is(
    status: str, flag: str, counts: bool, tmp_path: Path
) -> None:
    found = _dpkg.interrupted(packages(line("coreutils", status=status, flag=flag), line("bash")), tmp_path)
    assert found == (["coreutils"] if counts else [])


@pytest.mark.parametrize(("files", "pending"), [([], False), (["tmp.i"], False), (["0000", "tmp.i"], True)])
def test_updates_that_dpkg_did_not_write_back_count(files: list[str], pending: bool, tmp_path: Path) -> None:
    updates = tmp_path / "var/lib/dpkg/updates"
    updates.mkdir(parents=True)
    for name in files:
        (updates / name).touch()
    assert _dpkg.interrupted([], tmp_path) == ([_dpkg.PENDING] if pending else [])


@pytest.fixture(params=_dpkg.LOCKS)
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for path in _dpkg.LOCKS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    return tmp_path / str(request.param)


@pytest.fixture
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock as apt and dpkg do."""
    program = f"import fcntl, sys\nfile = open({str(lock)!r}, 'w')\nfcntl.lockf(file, fcntl.LOCK_EX)\nprint('held', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_of_a_lock_is_named(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    found = _dpkg.lock_holder(tmp_path)
    assert found == {"pid": holder.pid, "command": Path(f"/proc/{holder.pid}/comm").read_text().strip()}


def test_a_lock_is_free_once_its_holder_is_gone(holder: subprocess.Popen[str], lock: Path, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert _dpkg.lock_holder(tmp_path) is None
    with lock.open("w") as file:  # the question itself left no lock
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_host_without_dpkg_has_no_lock(tmp_path: Path) -> None:
    assert _dpkg.lock_holder(tmp_path) is None


def test_a_file_belongs_to_the_package_that_lists_it(tmp_path: Path) -> None:
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "nvidia-installer.list").write_text("/.\n/usr\n/usr/bin\n/usr/bin/nvidia-installer\n")
    assert _dpkg.owns(tmp_path, tmp_path / "usr/bin/nvidia-installer")
    assert not _dpkg.owns(tmp_path, tmp_path / "usr/bin/nvidia-install")
