#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Make a folder hold every wheel of one or more lock files, each proved by its hash."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: wheelhouse
short_description: Make a folder hold every wheel of a lock file
version_added: 1.0.0
description:
  - Compares the SHA256 of the wheels in a folder with the hashes of lock files, and fetches by C(pip download) with required hashes those that are missing.
  - A wheel appears in the folder under its name when it is whole and proved, so that a run that was cut off is gone on with by the next one.
  - A wheel that is not what a lock says is named and fetched again. A file that was hashed before and has not changed since is not read again.
  - Several releases share a folder. Indexes, proxies and certificate authorities reach pip through the task's environment.
options:
  path:
    description: Folder of the wheels. In check mode it may be absent.
    type: path
    required: true
  locks:
    description: Requirements files on the host in which every package is pinned with C(==) and hashes. In check mode they may be absent.
    type: list
    elements: path
    required: true
  stamp:
    description: File that remembers what was hashed, outside of the folder.
    type: path
    required: true
  python:
    description: Interpreter that the wheels are for. Asked for only where something is missing.
    type: path
  pip:
    description: The pip program that fetches where the interpreter has no pip of its own; 22.3 or newer.
    type: path
  workers:
    description: How many pips fetch at once.
    type: int
    default: 4
  keep:
    description: Lock files whose wheels stay beside those of O(locks); a wheel of none of them is deleted. Left out, nothing is deleted.
    type: list
    elements: path
attributes:
  check_mode:
    description: Reads and compares; reports what would be fetched and deleted.
    support: full
  diff_mode:
    description: Shows the wheels that come and go.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Hold every wheel of the release
  h20.fleet.wheelhouse:
    path: /var/lib/h20-fleet/mirror/wheels
    locks: [/var/lib/h20-fleet/mirror/locks/2026.11.txt]
    stamp: /var/lib/h20-fleet/mirror.wheels.json
    python: /opt/vllm/releases/2026.11/bin/python
    pip: /opt/vllm/tools/uv-0.13.9/bin/pip
"""

RETURN = r"""
files:
  description: Number of wheels in the folder that the locks name.
  returned: success
  type: int
size:
  description: Sum of their sizes.
  returned: success
  type: int
bytes:
  description: Sum of the sizes of the wheels that were fetched.
  returned: success
  type: int
missing:
  description: Pins of which the folder had no wheel, as name==version.
  returned: success
  type: list
  elements: str
altered:
  description: Names of wheels that were not what a lock, or an earlier run, says of them.
  returned: success
  type: list
  elements: str
deleted:
  description: Names of wheels of no lock.
  returned: success
  type: list
  elements: str
smallest:
  description: Name and SHA256 of the smallest wheel that the locks name; empty where there is none.
  returned: success
  type: dict
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.h20.fleet.plugins.module_utils import _programs

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;]+)")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})\b")
MISMATCH = re.compile(r"Expected sha256 .*?Got\s+([0-9a-f]{64})", re.DOTALL)
ABSENT = re.compile(r"No matching distribution found for (\S+)")

#: Pins that one pip fetches: few, since pip hands over its files at the end, and what a cut-off run loses is what the pips at work had.
BATCH = 4
#: Seconds that one pip may take. pip gives up by itself on an index that is silent; this is for a pip that hangs.
TIMEOUT = 6 * 3600
#: Folder, inside that of the wheels, so that a finished wheel moves by rename. Its name is hidden from clients.
PART = ".part"


class Pin(t.NamedTuple):
    """One package of a lock."""

    name: str
    version: str
    hashes: frozenset[str]
    line: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


class Wheel(t.NamedTuple):
    """A file of the folder: its hash, and the hash that it had when it was proved ("" for one that never was)."""

    size: int
    sha256: str
    proved: str


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it: lower case, runs of ``-_.`` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(text: str) -> list[Pin]:
    """The pins of a lock's text. Raises ValueError for one without a hash, as it could be anything."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        requirement = line.partition(" #")[0].strip()
        if match := PIN.match(requirement):
            hashes = frozenset(HASH.findall(requirement))
            if not hashes:
                raise ValueError(f"{match[1]}=={match[2]} has no sha256")
            found.append(Pin(normalized(match[1]), match[2], hashes, requirement))
    return found


def pin_of(name: str) -> tuple[str, str]:
    """Normalized name and version that a wheel's file name says."""
    distribution, _separator, rest = name.partition("-")
    return normalized(distribution), rest.partition("-")[0]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA256 of a file."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


class Folder:
    """The wheels of a folder with their hashes, of which the stamp remembers those of files that have not changed."""

    def __init__(self, path: Path, stamp: Path) -> None:
        self.path, self.stamp = path, stamp
        self.known = self._read()
        self.wheels: dict[str, Wheel] = {}
        self.marks: dict[str, list[int]] = {}

    def look(self) -> None:
        """Read what is new or has changed since it was read."""
        paths = sorted(self.path.glob("*.whl"))
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashlib lets other threads run
            for path, (mark, sha256) in zip(paths, pool.map(self._hashed, paths), strict=True):
                proved = self.known.get(path.name, {}).get("proved", "")
                self.wheels[path.name] = Wheel(mark[0], sha256, proved)
                self.marks[path.name] = mark

    def _hashed(self, path: Path) -> tuple[list[int], str]:
        status = path.stat()
        mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        before = self.known.get(path.name, {})
        return mark, before["sha256"] if before.get("mark") == mark else sha256_of(path)

    def take(self, path: Path, sha256: str) -> None:
        """Move a proved file in, under its name."""
        path.chmod(0o644)
        path.replace(self.path / path.name)
        status = (self.path / path.name).stat()
        self.marks[path.name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        self.wheels[path.name] = Wheel(status.st_size, sha256, sha256)

    def drop(self, name: str) -> None:
        """Delete a wheel."""
        (self.path / name).unlink()
        del self.wheels[name], self.marks[name]

    def remember(self, hashes: t.Container[str]) -> None:
        """Write the stamp. Of a wheel with one of these hashes, it is the proved one from now on."""
        found = {
            name: {
                "mark": self.marks[name],
                "sha256": wheel.sha256,
                "proved": wheel.sha256 if wheel.sha256 in hashes else wheel.proved,
            }
            for name, wheel in self.wheels.items()
        }
        if found == self.known:
            return
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.stamp.parent, prefix=".wheels-", delete=False) as file:
            json.dump(found, file)
        Path(file.name).replace(self.stamp)
        self.known = found

    def _read(self) -> dict[str, dict[str, t.Any]]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            content = json.loads(self.stamp.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        return {}


def altered(folder: Folder, lacking: t.Iterable[Pin], hashes: t.Container[str]) -> list[str]:
    """Wheels that are not as they were proved, or that stand in the place of one that a lock wants."""
    wanted = {(pin.name, pin.version) for pin in lacking}
    return sorted(
        name
        for name, wheel in folder.wheels.items()
        if wheel.sha256 not in hashes and (wheel.proved not in ("", wheel.sha256) or pin_of(name) in wanted)
    )


def lacking(folder: Folder, pins: t.Iterable[Pin]) -> list[Pin]:
    """Pins of which the folder has no wheel."""
    there = {wheel.sha256 for wheel in folder.wheels.values()}
    return [pin for pin in pins if not pin.hashes & there]


def pip_command(python: str, pip: str | None) -> list[str]:
    """How to run pip for an interpreter. Raises ValueError where there is none."""
    if _programs.run([python, "-I", "-m", "pip", "--version"]).status == 0:
        return [python, "-I", "-m", "pip"]
    if not pip:
        raise ValueError(f"{python} has no pip -> name one in `pip`")
    return [pip, "--python", python]


def fetch(folder: Folder, command: list[str], pins: list[Pin]) -> tuple[int, str]:
    """Fetch the wheels of some pins. The bytes that came, and why not all did ("" where they did)."""
    with tempfile.TemporaryDirectory(dir=folder.path / PART) as work:
        lock, files = Path(work) / "lock.txt", Path(work) / "files"
        lock.write_text("".join(f"{pin.line}\n" for pin in pins), encoding="utf-8")
        answer = _programs.run(
            [
                *command,
                "download",
                "--no-input",
                "--disable-pip-version-check",
                "--no-cache-dir",  # it would hold every byte a second time
                "--progress-bar=off",
                "--no-deps",
                "--require-hashes",
                "--only-binary=:all:",
                "--dest",
                str(files),
                "--requirement",
                str(lock),
            ],
            TIMEOUT,
        )
        if answer.status != 0 and len(pins) > 1:  # the others of the batch are not to blame
            came = [fetch(folder, command, [pin]) for pin in pins]
            return sum(size for size, _reason in came), "; ".join(reason for _size, reason in came if reason)
        if answer.status != 0:
            return 0, reason_of(answer.error, str(pins[0]))
        hashes = {sha256 for pin in pins for sha256 in pin.hashes}
        size = 0
        for path in files.glob("*.whl"):
            sha256 = sha256_of(path)
            if sha256 in hashes:
                size += path.stat().st_size
                folder.take(path, sha256)
        return size, ""


def reason_of(error: str, pin: str) -> str:
    """Why pip did not fetch a pin, on one line."""
    if mismatch := MISMATCH.search(error):
        return f"{pin}: the file that is served has the hash {mismatch[1]}, which is not in the lock"
    if ABSENT.search(error):
        return f"{pin}: no wheel of it that fits this host is served"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return f"{pin}: {(errors or lines or ['pip says nothing'])[-1]}"


def read_lock(module: AnsibleModule, path: str) -> list[Pin]:
    """The pins of a lock file; one that is not there has none in check mode."""
    try:
        return pinned(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not module.check_mode:
            module.fail_json(msg=f"there is no lock {path} -> write it first")
    except ValueError as error:
        module.fail_json(msg=f"{path}: {error} -> resolve the lock with hashes")
    return []


def read_locks(module: AnsibleModule, paths: t.Iterable[str]) -> list[Pin]:
    """All pins of lock files, one of each kind."""
    pins = [pin for path in paths for pin in read_lock(module, path)]
    return list({pin[:3]: pin for pin in pins}.values())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "locks": {"type": "list", "elements": "path", "required": True},
            "stamp": {"type": "path", "required": True},
            "python": {"type": "path"},
            "pip": {"type": "path"},
            "workers": {"type": "int", "default": 4},
            "keep": {"type": "list", "elements": "path"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    pins = read_locks(module, module.params["locks"])
    kept = read_locks(module, module.params["keep"] or [])
    wanted = {sha256 for pin in pins for sha256 in pin.hashes}
    known = wanted | {sha256 for pin in kept for sha256 in pin.hashes}
    folder = Folder(path, Path(module.params["stamp"]))
    folder.look()
    before = set(folder.wheels)
    missing = lacking(folder, pins)
    wrong = altered(folder, missing, known)
    surplus = sorted(
        name
        for name, wheel in folder.wheels.items()
        if module.params["keep"] is not None and wheel.sha256 not in known and name not in wrong
    )
    fetched = 0
    if not module.check_mode:
        path.mkdir(parents=True, exist_ok=True)
        folder.remember(known)
        if missing:
            fetched = _fill(module, folder, missing, wrong)
        for name in [*wrong, *surplus]:
            if name in folder.wheels and folder.wheels[name].sha256 not in known:
                folder.drop(name)
        folder.remember(known)
    there = {name: wheel for name, wheel in folder.wheels.items() if wheel.sha256 in wanted}
    smallest = min(there, key=lambda name: (there[name].size, name), default="")
    after = set(folder.wheels) - set(wrong) - set(surplus) | {str(pin) for pin in missing if module.check_mode}
    after |= set(wrong) & set(there)
    changed = bool(missing or wrong or surplus)
    module.exit_json(
        changed=changed,
        files=len(there),
        size=sum(wheel.size for wheel in there.values()),
        bytes=fetched,
        missing=sorted(map(str, missing)),
        altered=wrong,
        deleted=surplus,
        smallest={"name": smallest, "sha256": there[smallest].sha256} if smallest else {},
        diff={
            "before": "".join(f"{name}\n" for name in sorted(before - after)),
            "after": "".join(f"{name}\n" for name in sorted(after - before)),
            "before_header": str(path),
            "after_header": str(path),
        }
        if changed
        else {},
    )


def _fill(module: AnsibleModule, folder: Folder, missing: list[Pin], wrong: list[str]) -> int:
    """Fetch what is missing, and fail with the name of every pin that did not come. Bytes that came."""
    part = folder.path / PART
    batches = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
    if not module.params["python"]:
        module.fail_json(
            msg=f"{folder.path}: {missing[0]} is missing, and no interpreter is named -> name one in `python`"
        )
    shutil.rmtree(part, ignore_errors=True)  # of a run that was cut off
    part.mkdir(mode=0o700)
    try:
        command = pip_command(module.params["python"], module.params["pip"])
        with ThreadPoolExecutor(max_workers=max(1, module.params["workers"])) as pool:
            came = list(pool.map(lambda pins: fetch(folder, command, pins), batches))
    except ValueError as error:
        module.fail_json(msg=f"{folder.path}: {error}")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(size for size, _reason in came)
    reasons = [reason for _size, reason in came if reason]
    left = lacking(folder, missing)
    # What pip passes over without a word has a marker that does not hold here.
    reasons += [] if reasons else [f"{pin}: pip fetched nothing for it" for pin in left if ";" not in pin.line]
    if reasons:
        folder.remember({sha256 for pin in missing for sha256 in pin.hashes})
        named = "".join(
            f"{name} is not what the lock says, its hash is {folder.wheels[name].sha256}; " for name in wrong
        )
        module.fail_json(
            msg=f"{folder.path}: {named}{'; '.join(reasons)}"
            " -> name an index or a folder that has it (fleet_pip_index_url, fleet_pip_extra_index_urls, fleet_pip_find_links); the rest is kept",
            bytes=size,
        )
    return size


if __name__ == "__main__":
    main()
