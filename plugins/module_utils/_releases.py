# SPDX-License-Identifier: Apache-2.0
"""The releases of a host below one folder: which there are, what points at them, and what of them nobody needs any more.

releases/<name>/    one environment each; complete once release.json is in it, which is written last
current, previous   links: the release that serves, and the last other one that has served
rollback            link, there while a way back is under way
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import typing as t
from pathlib import Path

ROOT = "/opt/vllm"
#: Where the driver's stage keeps what it has fetched, so that going back needs no network.
DRIVER_PACKAGES = "/var/lib/h20-fleet/driver-packages"
RECORD = "release.json"
#: What a record says of the host's copy of a release, which is no part of its definition.
ABOUT = ("release", "environment")
#: Empty file in a release; its time is when the release last answered after it was switched to.
SERVED = "served"
CURRENT, PREVIOUS, ROLLBACK = "current", "previous", "rollback"


class Release(t.NamedTuple):
    """One release: its definition, None where it is torn, and when it was completed and last seen to serve (s since 1970, 0: never)."""

    path: Path
    definition: dict[str, t.Any] | None
    completed: float
    served: float

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def age_key(self) -> float:
        """What orders releases: when it last served, or was completed where it has not served yet."""
        return self.served or self.completed


def is_name(name: str) -> bool:
    """Whether it names a folder of its own, neither hidden nor elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) is not None


def read(root: Path) -> dict[str, Release]:
    """All releases by name; links and hidden folders are none of ours."""
    folder = root / "releases"
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name: _release(path)
        for path in paths
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    }


def _release(path: Path) -> Release:
    record = path / RECORD
    try:
        definition = json.loads(record.read_text(encoding="utf-8"))
        completed = record.stat().st_mtime
    except (FileNotFoundError, ValueError):  # nobody leaves half a record, but a disk that died may
        definition, completed = None, 0.0
    if not isinstance(definition, dict):
        return Release(path, None, 0.0, 0.0)
    definition.pop("release", None)
    definition.pop("environment", None)  # what was installed, which is no part of the definition
    return Release(path, definition, completed, _time(path / SERVED))


def _time(path: Path) -> float:
    """When a file or link itself was last changed, in s since 1970; 0 where it is not there."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def pointed(root: Path, link: str) -> str:
    """Name of the release that a link names, be it there or not; "" where the link is not there or names something else."""
    try:
        target = str((root / link).readlink())
    except OSError:  # it is not there, or is no link
        return ""
    parent, _separator, name = target.rpartition("/")
    return name if parent in ("releases", str(root / "releases")) else ""


def point(root: Path, link: str, release: str) -> None:
    """Let a link name a release, by one rename that is on the disk when this returns."""
    new = root / f".{link}.new"  # one name, so that what a cut left is taken up
    new.unlink(missing_ok=True)
    new.symlink_to(f"releases/{release}")
    new.replace(root / link)
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def next_previous(root: Path, release: str) -> str:
    """What `previous` names once ``release`` is the current one.

    That is the one that was current, as long as it has ever served: from a release that never did, the way back leads to the one before it.
    """
    there = read(root)
    current, previous = pointed(root, CURRENT), pointed(root, PREVIOUS)
    leaving = there.get(current)
    if current == release or leaving is None or leaving.definition is None:
        return previous
    known = there.get(previous)
    return current if leaving.served or known is None or known.definition is None else previous


def has_settled(root: Path, release: str) -> bool:
    """Whether the release was seen to serve after the last switch to it, and no way back is under way."""
    stamp = _time(root / "releases" / release / SERVED)
    return stamp > 0 and stamp >= _time(root / CURRENT) and not (root / ROLLBACK).is_symlink()


def leftovers(root: Path, release: str, keep: int, driver_packages: Path, proc: Path = Path("/proc")) -> list[Path]:
    """What nobody needs once ``release`` serves: old releases beyond ``keep``, torn ones, and what none of the rest names.

    The rest is ``release``, `current`, `previous`, and the ``keep`` complete ones that served or were completed last. What a process uses is left.
    """
    there = read(root)
    fixed = {release, pointed(root, CURRENT), next_previous(root, release)}
    others = [item for name, item in there.items() if name not in fixed]
    complete = sorted((item for item in others if item.definition is not None), key=lambda item: -item.age_key)
    doomed = [*complete[keep:], *(item for item in others if item.definition is None)]
    used = Processes(proc)
    gone = {item.path for item in doomed if not used.touch(item.path)} if doomed else set()
    rest = [item for item in there.values() if item.path not in gone]
    unused = [path for path in _unnamed(root, rest, driver_packages) if not used.touch(path)]
    return [*sorted(gone), *unused]


def _unnamed(root: Path, rest: list[Release], driver_packages: Path) -> t.Iterator[Path]:
    """Tools, interpreters and driver packages that no release of ``rest`` names."""
    definitions = [item.definition for item in rest if item.definition is not None]
    if not definitions:  # a host on which nothing is complete tells nothing
        return
    tools = {f"uv-{definition['uv']['version']}" for definition in definitions}
    yield from (path for path in sorted((root / "tools").glob("uv-*")) if path.name not in tools)
    pythons = {os.path.realpath(item.path / "bin/python") for item in rest}
    for path in sorted((root / "pythons").glob("[!.]*")):
        real = os.path.realpath(path)
        if not any(python.startswith(f"{real}/") for python in pythons):
            yield path
    versions = {definition[part]["version"] for definition in definitions for part in ("driver", "dcgm")}
    yield from (path for path in sorted(driver_packages.glob("*.deb")) if _upstream(path.name) not in versions)


def _upstream(file: str) -> str:
    """A package's version without epoch and revision, from the name that apt gives its file."""
    version = file.split("_")[1] if file.count("_") >= 2 else ""
    return re.sub(r"^\d+%3a", "", version).rpartition("-")[0] or version


class Processes:
    """What the running processes use; read at the first question, since most runs ask none."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.names: set[str] | None = None

    def touch(self, path: Path) -> bool:
        """Whether a process has something below ``path`` as its program, folder, argument or in its memory."""
        if self.names is None:
            self.names = set()
            for process in self.proc.glob("[0-9]*"):
                self.names |= _named_by(process)
        folders = {f"{path}/", f"{os.path.realpath(path)}/"}
        return any(folder in f"{name}/" for name in self.names for folder in folders)


def _named_by(process: Path) -> set[str]:
    names: set[str] = set()
    for link in ("exe", "cwd"):
        with contextlib.suppress(OSError):  # a kernel's thread, or a process that has just ended
            names.add(str((process / link).readlink()))
    with contextlib.suppress(OSError):
        names.update((process / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0"))
    with contextlib.suppress(OSError):
        maps = (process / "maps").read_text(encoding="utf-8", errors="replace")
        names.update(re.findall(r" (/\S.*)$", maps, re.MULTILINE))
    return names


def delete(path: Path) -> None:
    """Delete a release, folder, link or file; a release that is cut off half way is torn, not complete."""
    if path.is_dir() and not path.is_symlink():
        (path / RECORD).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
