# SPDX-License-Identifier: Apache-2.0
"""What dpkg says of a host: the driver's packages and where they come from, kernel metapackages, what was interrupted, who holds the lock."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import typing as t
from pathlib import Path

FIELDS = (
    "Package",
    "Version",
    "source:Upstream-Version",
    "Maintainer",
    "db:Status-Want",
    "db:Status-Status",
    "db:Status-Eflag",
)
#: One process for all packages; what matters is picked here.
QUERY = ("dpkg-query", "--show", "--showformat=" + r"\t".join(f"${{{field}}}" for field in FIELDS) + r"\n")

#: Families of packages that make up a driver, from whichever archive.
DRIVER_PACKAGE = re.compile(
    r"nvidia-.*|libnvidia-.*|libcuda1|xserver-xorg-video-nvidia.*|firmware-nvidia-gsp|cuda-drivers.*|datacenter-gpu-manager.*"
)
#: The same beginnings, but no part of a driver: they run containers.
CONTAINER_PACKAGE = re.compile(r"nvidia-container-.*|nvidia-docker.*|libnvidia-container.*")
#: A metapackage names a flavour (linux-image-generic-hwe-22.04), an image its version (linux-image-6.8.0-45-generic, linux-image-unsigned-6.8.0-45-generic).
KERNEL_METAPACKAGE = re.compile(r"linux-(image|headers)-(?!unsigned-|uc-)[a-z].*")

#: What a driver's version looks like, 580.173.02 or 550.54; nvidia-prime 0.8 is no driver.
DRIVER_VERSION = re.compile(r"\d{3}\.\d+(\.\d+)?")
#: Packages that stand for the closed kernel modules, whoever's they are; the stages install the open ones.
CLOSED_MODULES = re.compile(
    r"nvidia-kernel-dkms|cuda-drivers.*|nvidia-(dkms|driver|headless|kernel-source)-\d+(-server)?"
)
#: A package that is gone but for its configuration, or was never there.
ABSENT = {"not-installed", "config-files"}
#: States in which only dpkg or its end unasked leaves a package. Triggers that wait are ordinary.
HALF_DONE = {"half-installed", "unpacked", "half-configured"}
#: What interrupted names where dpkg's own journal was not written back.
PENDING = "(updates pending)"

#: struct flock of Linux on 64 bits: kind, whence, start, length, process.
FLOCK = "hhqqi4x"
#: Locks of dpkg, the outermost first.
LOCKS = ("var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock")
#: The archive that a maintainer's mail domain stands for.
ARCHIVES = {"nvidia.com": "nvidia", "ubuntu.com": "ubuntu", "debian.org": "debian", "debian.net": "debian"}


class Package(t.NamedTuple):
    """A line of QUERY's answer."""

    name: str
    version: str
    upstream_version: str
    maintainer: str
    want: str
    status: str
    flag: str


def parse_packages(text: str) -> list[Package]:
    """All packages that dpkg knows and that are there at least in part."""
    rows = [line.split("\t") for line in text.splitlines()]
    packages = [Package(*row) for row in rows if len(row) == len(FIELDS)]
    return [package for package in packages if package.status not in ABSENT]


def driver_packages(packages: t.Iterable[Package]) -> list[dict[str, t.Any]]:
    """The packages of a driver, as gpu_info returns them."""
    return [
        {
            "name": package.name,
            "version": package.version,
            "upstream_version": package.upstream_version,
            "archive": archive(package.maintainer),
            "status": package.status,
            "held": package.want == "hold",
        }
        for package in packages
        if DRIVER_PACKAGE.fullmatch(package.name) and not CONTAINER_PACKAGE.fullmatch(package.name)
    ]


def is_driver(package: t.Mapping[str, t.Any]) -> bool:
    """Whether one of driver_packages carries a driver's version, and so moves with the driver."""
    return DRIVER_VERSION.fullmatch(package["upstream_version"]) is not None


def is_foreign(package: t.Mapping[str, t.Any]) -> bool:
    """Whether it is of a driver that the stages do not install: of another archive than NVIDIA's, or with the closed kernel modules."""
    return is_driver(package) and (package["archive"] != "nvidia" or is_closed(package))


def is_closed(package: t.Mapping[str, t.Any]) -> bool:
    """Whether it stands for the closed kernel modules."""
    return CLOSED_MODULES.fullmatch(package["name"]) is not None


def archive(maintainer: str) -> str:
    """Whose archive a package is from, by the mail address of its maintainer."""
    domain = maintainer.rpartition("@")[2].rstrip("> ").lower()
    return next(
        (name for ending, name in ARCHIVES.items() if domain == ending or domain.endswith("." + ending)), "other"
    )


def kernel_metapackages(packages: t.Iterable[Package]) -> list[dict[str, t.Any]]:
    """The installed packages that bring the newest kernel of a flavour and its headers, each ``{name, held}``."""
    return [
        {"name": package.name, "held": package.want == "hold"}
        for package in sorted(packages)
        if package.status == "installed" and KERNEL_METAPACKAGE.fullmatch(package.name)
    ]


def interrupted(packages: t.Iterable[Package], root: Path) -> list[str]:
    """The packages that dpkg did not finish, and PENDING where its own updates wait."""
    names = sorted({package.name for package in packages if package.status in HALF_DONE or package.flag == "reinstreq"})
    journal = root / "var/lib/dpkg/updates"
    pending = journal.is_dir() and any(path.name.isdigit() for path in journal.iterdir())
    return [*names, PENDING] if pending else names


def owns(root: Path, path: Path) -> bool:
    """Whether a package brought this file below the root, by dpkg's own lists of files."""
    line = f"/{path.relative_to(root)}"
    lists = (root / "var/lib/dpkg/info").glob("*.list")
    return any(line in listed.read_text(encoding="utf-8", errors="replace").splitlines() for listed in lists)


def lock_holder(root: Path) -> dict[str, t.Any] | None:
    """``{pid, command}`` of the process that holds one of dpkg's locks; None where nobody does or the lock may not be read.

    The kernel is asked who is in the way of a lock of our own, and takes none.
    """
    for path in LOCKS:
        try:
            with (root / path).open("rb") as file:
                answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError:
            continue
        kind, _whence, _start, _length, pid = struct.unpack(FLOCK, answer)
        if kind != fcntl.F_UNLCK:
            return {"pid": pid, "command": _command(pid)}
    return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
