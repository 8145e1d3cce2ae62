# SPDX-License-Identifier: Apache-2.0
"""A site of several hosts on one machine, each with a loopback address of its own, and the small revision that they spread."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.h20.fleet.plugins.module_utils._weights.job import Job
from unit.weights.support import CONTENT, Place, manifest_of, write

MANIFEST = manifest_of(CONTENT, "a" * 40)
FILES = {file.path: file for file in MANIFEST.files}
#: The exchange's, the files', the tracker's, and those of two processes.
PORTS = 5


def free_ports() -> int:
    """The first of as many ports in a row as a site needs, free at every loopback address."""
    for first in range(20000, 32000, PORTS):
        listeners = [socket.socket() for _ in range(PORTS)]
        try:
            for offset, listener in enumerate(listeners):
                listener.bind(("", first + offset))
        except OSError:
            continue
        finally:
            for listener in listeners:
                listener.close()
        return first
    raise AssertionError("no ports are free")


class Neighbours:
    """The hosts' jobs: `names` in order, the first is the exchange."""

    def __init__(self, root: Path, names: Sequence[str], origins: int = 1, **site: Any) -> None:
        self.root = root
        groups: dict[str, str] = site.pop("groups", {})
        self.site: dict[str, Any] = {
            "hosts": {
                name: {"address": f"127.0.0.{number + 2}", "group": groups.get(name, "")}
                for number, name in enumerate(names)
            },
            "origins": list(names[:origins]),
            "port": free_ports(),
            "processes": 2,
        } | site

    def job(self, host: str, distribution: str = "peer", **limits: Any) -> Job:
        """The job of a host, and its folders."""
        place = Place(self.root / host, MANIFEST, ())
        return place.job(host=host, distribution=distribution, site=self.site, limits=limits)

    def tree(self, host: str, *, full: bool = False) -> Path:
        """Where the host's files lie: all of them, or none yet."""
        tree = self.root / host / "tree"
        tree.mkdir(parents=True)
        write(tree, CONTENT if full else {})
        return tree
