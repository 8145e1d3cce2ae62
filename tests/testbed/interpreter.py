# SPDX-License-Identifier: Apache-2.0
"""The stand-in for the interpreters that uv brings: the distribution's own, packed as theirs are, and a list that names it with its hash."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

from docker import DockerClient

FOLDER = "python"  # below it lies what UV_PYTHON_INSTALL_MIRROR stands for
LIST = "downloads.json"
STAMP = ".stamp"
DATE = "20260101"
# The address that a mirror of uv's stands for: uv accepts no other in front of a file.
UPSTREAM = "https://github.com/astral-sh/python-build-standalone/releases/download"

# Runs in a container of the image; prints the interpreter's version. What is packed finds its library by its own place.
PACK = """
version=$(python3 -c 'import platform; print(platform.python_version())')
name=python${version%.*}
tar --create --gzip --exclude=__pycache__ --exclude=EXTERNALLY-MANAGED --transform='s,^,python/,' --directory=/usr --file=/out/new.tar.gz bin/$name lib/$name
chmod 0644 /out/new.tar.gz
echo $version
"""


def build(client: DockerClient, reference: str, root: Path) -> None:
    """Write the archive and the list below ``root``/python from the image `reference`, or leave those there that came from it."""
    folder = root / FOLDER
    stamp = f"{reference} {hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}"
    if (folder / STAMP).is_file() and (folder / STAMP).read_text() == stamp:
        return
    place = folder / DATE
    place.mkdir(parents=True, exist_ok=True)
    command = ["sh", "-euc", PACK]
    said = client.containers.run(reference, command, volumes=[f"{place}:/out"], network_mode="none", remove=True)
    version = bytes(said).decode().strip()
    machine = platform.machine()
    archive = f"cpython-{version}+{DATE}-{machine}-unknown-linux-gnu-install_only_stripped.tar.gz"
    (place / "new.tar.gz").rename(place / archive)
    entry = listed(version, machine, archive, hashlib.sha256((place / archive).read_bytes()).hexdigest())
    (folder / LIST).write_text(json.dumps(entry, indent=1))
    (folder / STAMP).write_text(stamp)


def listed(version: str, machine: str, archive: str, sha256: str) -> dict[str, object]:
    """The list, as uv reads it from UV_PYTHON_DOWNLOADS_JSON_URL."""
    major, minor, patch = (int(part) for part in version.split("."))
    return {
        f"cpython-{version}-linux-{machine}-gnu": {
            "name": "cpython",
            "arch": {"family": machine, "variant": None},
            "os": "linux",
            "libc": "gnu",
            "major": major,
            "minor": minor,
            "patch": patch,
            "prerelease": "",
            "url": f"{UPSTREAM}/{DATE}/{archive.replace('+', '%2B')}",
            "sha256": sha256,
            "variant": None,
            "build": DATE,
        }
    }
