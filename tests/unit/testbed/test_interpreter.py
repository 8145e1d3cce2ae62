# SPDX-License-Identifier: Apache-2.0
"""The stand-in for uv's interpreters: packed once an image, and listed as uv reads it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from docker import DockerClient
from testbed import interpreter


def test_an_image_is_packed_once_and_listed_with_its_hash(tmp_path: Path) -> None:
    ran: list[str] = []

    def run(reference: str, _command: list[str], *, volumes: list[str], **_: Any) -> bytes:
        ran.append(reference)
        (Path(volumes[0].split(":")[0]) / "new.tar.gz").write_bytes(reference.encode())
        return b"3.11.2\n"

    client = cast(DockerClient, SimpleNamespace(containers=SimpleNamespace(run=run)))
    for reference in ("image:1", "image:1", "image:2"):
        interpreter.build(client, reference, tmp_path)
    assert ran == ["image:1", "image:2"]
    [entry] = json.loads((tmp_path / "python/downloads.json").read_text()).values()
    assert (entry["major"], entry["minor"], entry["patch"]) == (3, 11, 2)
    assert entry["sha256"] == hashlib.sha256(b"image:2").hexdigest()
    below = entry["url"].removeprefix(f"{interpreter.UPSTREAM}/").replace("%2B", "+")
    assert (tmp_path / "python" / below).read_bytes() == b"image:2"


def test_the_script_is_one() -> None:
    subprocess.run(["sh", "-n"], input=interpreter.PACK, text=True, check=True)
