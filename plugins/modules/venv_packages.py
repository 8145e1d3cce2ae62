#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Make the packages of a virtual environment exactly those of a lock file."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: venv_packages
short_description: Make a virtual environment hold exactly the packages of a lock file
version_added: 1.0.0
description:
  - Compares name and version of every installed distribution with the lock, and runs C(uv pip sync) with required hashes where they differ.
  - A host that satisfies the lock is left alone and asks no index.
  - What the distributions say of their own files gives a digest, equal on hosts that were installed from one lock into a folder of one name. An
    environment whose digest is not the one in its record is installed anew.
  - Indexes, proxies and certificate authorities reach uv through the task's environment.
options:
  venv:
    description: Folder of the virtual environment. In check mode it may be absent.
    type: path
    required: true
  lock:
    description: Requirements file on the host in which every package is pinned with C(==) and hashes.
    type: path
    required: true
  record:
    description: File that marks the environment as complete; it is deleted before any package changes, and made by whoever finds it complete.
      It is JSON; C(environment.digest) in it, where it is there, is the digest that the environment had.
    type: path
    required: true
  uv:
    description: The uv program.
    type: path
    required: true
  no_index:
    description: Whether uv may look at the folders and pages of wheels in its environment alone. uv knows no environment variable for that.
    type: bool
    default: false
  verify_files:
    description: Whether every installed file is read and compared with the hash that its distribution gives. It takes as long as reading the environment.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports which packages would change.
    support: full
  diff_mode:
    description: Shows the pins that differ.
    support: full
author:
  - h20.fleet maintainers (@h20-fleet)
"""

EXAMPLES = r"""
- name: Install exactly the packages of the lock
  h20.fleet.venv_packages:
    venv: /opt/vllm/releases/2026.11
    lock: /opt/vllm/releases/2026.11/requirements.lock
    record: /opt/vllm/releases/2026.11/release.json
    uv: /opt/vllm/tools/uv-0.13.9/bin/uv
"""

RETURN = r"""
recorded:
  description: Whether the record that marks the environment as complete is there.
  returned: always
  type: bool
packages:
  description: Number of packages that the lock names.
  returned: always
  type: int
digest:
  description: sha256 over name, version and file hashes of every installed distribution, without what a host adds; empty where nothing is installed.
  returned: always
  type: str
altered:
  description: Files that are not there or not as their distribution says, relative to the environment; empty where O(verify_files) is false.
  returned: always
  type: list
  elements: str
"""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ansible.module_utils.basic import AnsibleModule

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it: lower case, runs of ``-_.`` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> dict[str, str]:
    """Version by normalized name of each pin in a lock file's text."""
    return {normalized(name): version for name, version in PIN.findall(text)}


def installed(venv: Path) -> dict[str, str]:
    """Version by normalized name of each distribution in the environment; {} where there is none."""
    found: dict[str, str] = {}
    for folder in venv.glob("lib/python*/site-packages/*.dist-info"):
        name, _separator, version = folder.name.removesuffix(".dist-info").rpartition("-")
        found[normalized(name)] = version
    return found


#: Files of a distribution that tell of the host and the way of installing, not of its content.
HOST_FILES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "uv_build.json")


def records(venv: Path) -> dict[str, list[tuple[str, str]]]:
    """By name of each dist-info, path (relative to its folder's parent) and hash ("sha256=<base64>") of the files that its RECORD lists.

    Compiled files and those that tell of the host are left out. A distribution without a RECORD has no files.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for folder in venv.glob("lib/python*/site-packages/*.dist-info"):
        try:
            with (folder / "RECORD").open(encoding="utf-8", newline="") as lines:
                rows = [(row[0], row[1]) for row in csv.reader(lines) if len(row) > 1]
        except FileNotFoundError:
            rows = []
        own = {f"{folder.name}/{name}" for name in HOST_FILES}
        found[folder.name] = sorted(
            (path, digest) for path, digest in rows if path not in own and not path.endswith(".pyc")
        )
    return found


def digest_of(venv: Path) -> str:
    """sha256 (hexadecimal) over all that `records` gives; "" for an environment without a distribution."""
    found = records(venv)
    lines = [f"{name}\n{path},{digest}\n" for name in sorted(found) for path, digest in found[name] or [("", "")]]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def recorded_digest(record: Path) -> str:
    """The digest that a record names; "" where it names none or is not there."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return str(content["environment"]["digest"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def altered_files(venv: Path) -> list[str]:
    """Files, relative to the environment, that are not there or whose hash is not their distribution's."""
    wanted = {}
    for folder in venv.glob("lib/python*/site-packages"):
        for rows in records(venv).values():
            wanted.update({os.path.normpath(folder / path): digest for path, digest in rows if digest})
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashlib lets other threads run
        same = pool.map(lambda item: _hash(item[0], item[1].partition("=")[0]) == item[1], wanted.items())
        return sorted(os.path.relpath(path, venv) for path, right in zip(wanted, same, strict=True) if not right)


def _hash(path: str, algorithm: str) -> str:
    """A file's hash as a RECORD writes it; "" where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            state = hashlib.new(algorithm)
            while block := file.read(1 << 20):
                state.update(block)
    except OSError:
        return ""
    return f"{algorithm}={base64.urlsafe_b64encode(state.digest()).decode().rstrip('=')}"


def _empty(venv: Path) -> None:
    """Delete all packages, but not what the environment itself put beside them."""
    for path in venv.glob("lib/python*/site-packages/*"):
        if path.name.startswith("_virtualenv."):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def as_text(pins: t.Mapping[str, str], names: t.Iterable[str]) -> str:
    """The pins of ``names`` as sorted lines; a name that is not pinned has none."""
    return "".join(f"{name}=={pins[name]}\n" for name in sorted(names) if name in pins)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "venv": {"type": "path", "required": True},
            "lock": {"type": "path", "required": True},
            "record": {"type": "path", "required": True},
            "uv": {"type": "path", "required": True},
            "no_index": {"type": "bool", "default": False},
            "verify_files": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    venv, lock = Path(module.params["venv"]), Path(module.params["lock"])
    record = Path(module.params["record"])
    if not lock.exists() and module.check_mode:
        module.exit_json(changed=True, packages=0, recorded=False, digest="", altered=[])
    wanted = locked(lock.read_text(encoding="utf-8"))
    before = installed(venv)
    differing = {name for name in {*wanted, *before} if wanted.get(name) != before.get(name)}
    diff = {
        "before": as_text(before, differing),
        "after": as_text(wanted, differing),
        "before_header": str(venv),
        "after_header": str(lock),
    }
    digest, recorded = digest_of(venv), recorded_digest(record)
    altered = altered_files(venv) if module.params["verify_files"] else []
    # Of files that are other ones under the right version, nobody knows which package is at fault: all are installed anew.
    anew = bool(altered) or (recorded not in ("", digest))
    if anew:
        diff["before"] += "".join(f"{path}\n" for path in altered) or f"digest {digest}\n"
        diff["after"] += "" if altered else f"digest {recorded}\n"
    # There only while packages change: a uv that was killed leaves packages that look whole by name and are not.
    under_way = record.with_name("installing")
    was_under_way = under_way.exists()
    if (differing or anew or was_under_way) and not module.check_mode:
        record.unlink(missing_ok=True)
        if was_under_way:
            _empty(venv)
        under_way.touch()
        options = ["--reinstall"] * anew + ["--no-index"] * module.params["no_index"]
        rc, out, err = module.run_command(
            [
                module.params["uv"],
                "pip",
                "sync",
                "--no-progress",
                "--require-hashes",
                "--compile-bytecode",  # the service may not write into the environment, so it would compile at every start
                *options,
                "--python",
                str(venv / "bin/python"),
                str(lock),
            ]
        )
        if rc != 0:
            module.fail_json(
                msg=f"{venv}: {_failure(err, wanted, _sources(os.environ, no_index=module.params['no_index']))}",
                stdout=out,
                stderr=err,
            )
        left = {name for name, version in wanted.items() if installed(venv).get(name) != version}
        if left:
            module.fail_json(
                msg=f"{venv} still differs from {lock} in: {', '.join(sorted(left))}", stdout=out, stderr=err
            )
        under_way.unlink()
        digest = digest_of(venv)
    module.exit_json(
        changed=bool(differing) or anew or was_under_way,
        packages=len(wanted),
        recorded=record.exists(),
        digest=digest,
        altered=altered,
        diff=diff if differing or anew else {},
    )


MISMATCH = re.compile(r"Hash mismatch for `([^`=]+)==([^`]+)`.*?Computed:\s*(\S+)", re.DOTALL)
MISSING = re.compile(r"([A-Za-z0-9._-]+) was not found in")
ABSENT = re.compile(r"there is no version of ([A-Za-z0-9._-]+)==")
BROKEN = re.compile(r"Failed to (?:download|extract)[^`]*`([^`=]+)==([^`]+)`")


def _sources(environment: t.Mapping[str, str], *, no_index: bool) -> str:
    """Where uv looks for wheels, in words and without credentials."""
    links = environment.get("UV_FIND_LINKS", "").split(",")
    indexes = [] if no_index else [environment.get("UV_DEFAULT_INDEX", ""), *environment.get("UV_INDEX", "").split()]
    named = [_without_credentials(source) for source in (*links, *indexes) if source]
    if not no_index and not environment.get("UV_DEFAULT_INDEX"):
        named.append("the default index")
    return ", ".join(named)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.scheme else url


def _failure(stderr: str, wanted: t.Mapping[str, str], sources: str) -> str:
    """What went wrong, where, and the remedy."""
    if mismatch := MISMATCH.search(stderr):
        name, version, computed = mismatch.groups()
        return (
            f"the file of {name} {version} from {sources} has the hash {computed}, which is not in the lock"
            " -> it was tampered with or damaged: replace it at its source (on a mirror, delete it and run the mirror's play again); keep the lock"
        )
    if missing := MISSING.search(stderr) or ABSENT.search(stderr):
        name = normalized(missing[1])
        return (
            f"no wheel of {name} {wanted.get(name, '')} that fits this host is in {sources}"
            " -> bring it there (on a mirror, run the mirror's play again), or name an index that has it"
        )
    if (broken := BROKEN.search(stderr)) and "archive" in stderr:
        return (
            f"the file of {broken[1]} {broken[2]} from {sources} is damaged or cut off: {_reason(stderr)}"
            " -> replace it at its source (on a mirror, delete it and run the mirror's play again)"
        )
    return (
        f"uv could not install the lock from {sources}: {_reason(stderr)}"
        " -> mend that and run the stage again; what serves is untouched"
    )


def _reason(stderr: str) -> str:
    """uv's own explanation on one line: what it prints from the first error on."""
    lines = [line.strip(" ×╰─▶├│") for line in stderr.splitlines() if line.strip()]
    start = next(
        (number for number, line in enumerate(lines) if line.startswith(("error", "Failed", "No solution"))),
        max(0, len(lines) - 3),
    )
    return " ".join(lines[start:])


if __name__ == "__main__":
    main()
