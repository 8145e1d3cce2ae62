# SPDX-License-Identifier: Apache-2.0
"""A flat apt repository, signed, with the addresses and the field values of NVIDIA's."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path

from testbed import STATE, SetupError
from testbed.nvidia.package import Package, build, plan, ubuntu

HERE = Path(__file__).parent
KEY_HOME = STATE / "nvidia-key"
SIGNING_KEY = "signing-key.asc"
FINGERPRINT = "fingerprint"
PLACE = Path("compute/cuda/repos/debian12/x86_64")
UBUNTU = Path("ubuntu")  # plain files beside it, to be installed one by one
KEY_FILE = "3bf863cc.pub"
KEYRING = "/usr/share/keyrings/cuda-archive-keyring.gpg"
STAMP = ".stamp"
USER_ID = "h20.fleet test bed <cudatools@nvidia.test>"
TOOLS = {"dpkg-deb": "dpkg", "gpg": "gnupg", "gpgconf": "gnupg"}
SOURCE = f"deb [signed-by={KEYRING}] https://developer.download.nvidia.com/{PLACE.as_posix()}/ /\n"
PREFERENCES = "Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"


def build_repository(destination: Path, *, key_home: Path = KEY_HOME) -> str:
    """Build the repository under `destination`, or leave the one there if nothing has changed; return the fingerprint of its key (40 hex).

    Beside it are the packages of Ubuntu. Raises SetupError where a tool is missing, with the command that installs it.
    """
    _require_tools()
    fingerprint = _fingerprint(key_home)
    place = destination / PLACE
    stamp = _stamp(fingerprint)
    if (place / STAMP).is_file() and (place / STAMP).read_text(encoding="ascii") == stamp:
        return fingerprint
    _fill_ubuntu(destination / UBUNTU)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as scratch:
        fresh = Path(scratch) / "repository"
        fresh.mkdir()
        _fill(fresh, key_home / SIGNING_KEY)
        (fresh / STAMP).write_text(stamp, encoding="ascii")
        if place.exists():
            place.rename(Path(scratch) / "old")
        fresh.rename(place)
    return fingerprint


def _require_tools() -> None:
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise SetupError(
            f"The stand-in for NVIDIA's repository cannot be built. Install what it needs: apt-get install {' '.join(sorted(missing))}"
        )


def _stamp(fingerprint: str) -> str:
    """A hash over the sources and the key."""
    digest = hashlib.sha256(fingerprint.encode())
    for path in sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest() + "\n"


def _gpg(home: Path, *arguments: str, text: bytes = b"") -> bytes:
    options = ["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""]
    command = ["gpg", "--homedir", str(home), *options, *arguments]
    done = subprocess.run(command, input=text, capture_output=True, check=False)
    if done.returncode:
        raise SetupError(f"gpg {' '.join(arguments)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


@contextmanager
def _gpg_home() -> Iterator[Path]:
    """An empty home for gpg, away from the working copy: its agent's socket must have a short path."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        try:
            yield Path(home)
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], capture_output=True, check=False)


def _fingerprint(key_home: Path) -> str:
    """The fingerprint of the signing key, which is made where there is none."""
    note, key = key_home / FINGERPRINT, key_home / SIGNING_KEY
    if not (note.is_file() and key.is_file()):
        key_home.mkdir(parents=True, exist_ok=True)
        key_home.chmod(0o700)
        with _gpg_home() as home:
            _gpg(home, "--quick-generate-key", USER_ID, "rsa3072", "sign", "never")
            listing = _gpg(home, "--with-colons", "--list-secret-keys").decode()
            key.write_bytes(_gpg(home, "--armor", "--export-secret-keys"))
        note.write_text(
            next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:")), encoding="ascii"
        )
    return note.read_text(encoding="ascii")


def _fill(repository: Path, key: Path) -> None:
    """Write the packages, the index and its signatures."""
    with _gpg_home() as home:
        _gpg(home, "--import", str(key))
        (repository / KEY_FILE).write_bytes(_gpg(home, "--armor", "--export"))
        packages = [*plan(), _keyring_package(_gpg(home, "--export"))]
        with tempfile.TemporaryDirectory() as layout, ThreadPoolExecutor() as pool:
            index = "\n".join(pool.map(partial(_entry, Path(layout), repository), packages)).encode()
        (repository / "Packages").write_bytes(index)
        (repository / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
        release = _release(repository).encode()
        (repository / "Release").write_bytes(release)
        (repository / "Release.gpg").write_bytes(_gpg(home, "--armor", "--detach-sign", text=release))
        (repository / "InRelease").write_bytes(_gpg(home, "--clearsign", text=release))


def _fill_ubuntu(folder: Path) -> None:
    """Write the packages of Ubuntu, and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as layout:
        for package in ubuntu():
            build(package, Path(layout), folder)


def _keyring_package(keyring: bytes) -> Package:
    """cuda-keyring: the key, and a source that names NVIDIA's own address, as the real package does wherever it is mirrored."""
    return Package(
        name="cuda-keyring",
        version="1.1-1",
        architecture="all",
        description="GPG keyring for the CUDA repository",
        files={
            KEYRING: keyring,
            "/etc/apt/sources.list.d/cuda-debian12-x86_64.list": SOURCE,
            "/etc/apt/preferences.d/cuda-repository-pin-600": PREFERENCES,
        },
    )


def _entry(layout: Path, repository: Path, package: Package) -> str:
    """Build a package and return its paragraph in Packages."""
    deb = build(package, layout, repository)
    fields = subprocess.run(["dpkg-deb", "--field", str(deb)], check=True, capture_output=True, text=True).stdout
    content = deb.read_bytes()
    return (
        f"{fields}Filename: ./{deb.name}\nSize: {len(content)}\n"
        f"MD5sum: {hashlib.md5(content, usedforsecurity=False).hexdigest()}\n"
        f"SHA1: {hashlib.sha1(content, usedforsecurity=False).hexdigest()}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
    )


def _release(repository: Path) -> str:
    lines = [
        "Origin: NVIDIA",
        "Label: NVIDIA CUDA",
        "Architecture: x86_64",
        f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}",
    ]
    for title, algorithm in (("MD5Sum", "md5"), ("SHA1", "sha1"), ("SHA256", "sha256")):
        lines.append(f"{title}:")
        for name in ("Packages", "Packages.gz"):
            content = (repository / name).read_bytes()
            lines.append(f" {hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()} {len(content)} {name}")
    return "\n".join(lines) + "\n"
