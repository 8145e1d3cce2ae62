# SPDX-License-Identifier: Apache-2.0
"""The lock files of the role vllm: `PYTHONPATH=tests python -m gates.locks [name ...]` (`make lock`) resolves them, `check` proves them.

requirements/locks/locks.yml says which there are. `make lock` resolves each from its inputs alone; the gate asks whether the committed one is still an
answer to them, since an index changes: newer versions come, also with dates of long ago where it is a mirror. The index, proxy and CA are those of pip's
and uv's settings here. The CPU lock needs PyTorch's CPU wheel: where no find-links folder of pip or uv holds it, add
https://download.pytorch.org/whl/cpu/torch/ to UV_FIND_LINKS.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from ansible_collections.h20.fleet.plugins.filter.release_errors import release_errors
from ansible_collections.h20.fleet.plugins.module_utils import _locks
from testbed import environment
from testbed.hub import build_wheels

from gates.shell import CACHE, ROOT, GateError, Shell, fail_with, files

INPUTS = Path("requirements/locks")
LOCKS = Path("roles/vllm/files/locks")
RELEASES = Path("roles/release/files/releases")
PLATFORM = "x86_64-manylinux_2_35"  # the glibc of Ubuntu 22.04
WHEELS = CACHE / "locks" / "wheels"

# A lock and its hash as a release names them, in lines or in braces.
_NAMED = re.compile(r"(\bfile:\s*)([\w.+-]+\.txt)(,?\s+sha256:\s*)([0-9a-f]{64})\b")
_PIN = re.compile(r"^[^\s#-].*$", re.MULTILINE)


@dataclass(frozen=True)
class Lock:
    """One entry of locks.yml."""

    name: str
    inputs: str
    python: str
    target_device: str
    newest: str

    @property
    def path(self) -> Path:
        """The lock file, relative to ROOT."""
        return LOCKS / f"{self.name}.txt"

    def resolve(self, shell: Shell, kept: str = "") -> str:
        """Return the lock that its inputs give today, with the pins of `kept` where they still hold; raises GateError where they give none."""
        overrides = INPUTS / f"{self.inputs}.overrides.txt"
        command = ["uv", "pip", "compile", f"{INPUTS / self.inputs}.in"]
        command += ["--override", str(overrides)] if (ROOT / overrides).exists() else []
        command += ["--python-version", self.python, "--python-platform", PLATFORM, "--only-binary", ":all:"]
        command += ["--generate-hashes", "--no-annotate", "--no-emit-index-url"]
        command += [] if kept else ["--exclude-newer", self.newest]
        settings, without = settings_for(self.target_device)
        settings["UV_CUSTOM_COMPILE_COMMAND"] = f"make lock: {shlex.join([*command, '--output-file', str(self.path)])}"
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / self.path.name
            output.write_text(kept, encoding="utf-8")
            away = [word for name in without for word in ("--unset", name)]
            shell.run("env", *away, *command, "--quiet", "--output-file", output, env=settings, limit_s=600)
            return output.read_text(encoding="utf-8")


def settings_for(device: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Variables for uv beside those that are set, and the names of those that it must not see."""
    here = environment.read()
    settings = {"UV_DEFAULT_INDEX": here.index_url} if here.index_url else {}
    if device != "cpu":
        # A CPU build of torch found there would win over the index's own.
        return settings, ("UV_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_INDEX")
    build_wheels(WHEELS.parent)
    return settings | {"UV_FIND_LINKS": ",".join([str(WHEELS), *here.find_links])}, ()


def entries() -> list[Lock]:
    """Every lock of locks.yml."""
    text = (ROOT / INPUTS / "locks.yml").read_text(encoding="utf-8")
    return [Lock(name, **fields) for name, fields in yaml.safe_load(text).items()]


def without_hash(text: str) -> list[str]:
    """The requirements in a lock's text that are no exact pin, or have no sha256 behind them."""
    joined = text.replace("\\\n", " ")
    return [line for line in _PIN.findall(joined) if not re.match(r"[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line)]


def moved(before: str, after: str) -> list[str]:
    """What differs between two locks: a line for each package."""
    old, new = _locks.pins(before), _locks.pins(after)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{name} {old.get(name, '(new)')} -> {new.get(name, '(gone)')}" for name in names]


def vouch(text: str, hashes: dict[str, str]) -> str:
    """The text of a release with the hashes of the locks that it names; `hashes` by file name."""
    return _NAMED.sub(lambda match: "".join(match.group(1, 2, 3)) + hashes.get(match[2], match[4]), text)


def named() -> Iterator[tuple[Path, str, str]]:
    """Each place of the tree that names a lock with its hash: file, name of the lock, sha256."""
    for path in files("*.yml", "*.md"):
        if not (ROOT / path).is_symlink():
            for match in _NAMED.finditer((ROOT / path).read_text(encoding="utf-8")):
                yield path, match[2], match[4]


def sha256(path: Path) -> str:
    """The hash of a file of the tree."""
    return hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def write(chosen: list[Lock], shell: Shell) -> None:
    """Resolve locks, write them, and write their hashes wherever the tree names them."""
    texts = {lock: lock.resolve(shell) for lock in chosen}
    for lock, text in texts.items():
        before = (ROOT / lock.path).read_text(encoding="utf-8") if (ROOT / lock.path).exists() else ""
        (ROOT / lock.path).write_text(text, encoding="utf-8")
        changes = moved(before, text)
        print("\n".join([f"{lock.path}: {len(_locks.pins(text))} packages, {len(changes)} moved", *changes]))
    hashes = {lock.path.name: sha256(lock.path) for lock in chosen}
    places = list(named())
    for path in dict.fromkeys(path for path, name, _sha256 in places if name in hashes):
        before = (ROOT / path).read_text(encoding="utf-8")
        after = vouch(before, hashes)
        if after != before:
            (ROOT / path).write_text(after, encoding="utf-8")
            print(f"{path}: new hashes")
    for name in sorted(hashes.keys() - {name for _path, name, _sha256 in places}):
        print(f"{name}: no release names it yet; a release does by {{file: {name}, sha256: {hashes[name]}}}")


def findings(chosen: list[Lock], shell: Shell) -> Iterator[str]:
    """What is wrong with the locks themselves, or is no answer to their inputs today."""
    for lock in chosen:
        if not (ROOT / lock.path).exists():
            yield f"{lock.path} is not there -> make lock ONLY={lock.name}"
            continue
        text = (ROOT / lock.path).read_text(encoding="utf-8")
        yield from (f"{lock.path}: no exact pin with a hash: {line[:80]}" for line in without_hash(text))
        cuda = next(iter(_locks.cuda_majors(_locks.pins(text))), "")
        reasons = _locks.unsuitable(_locks.pins(text), lock.target_device, cuda)
        yield from (f"{lock.path} {reason}" for reason in reasons)
        try:
            today = lock.resolve(shell, kept=text)
        except GateError as error:
            yield f"{lock.path}: its inputs do not resolve: {error}"
            continue
        yield from (f"{lock.path}: {line}" for line in moved(text, today))
    strangers = {path.relative_to(ROOT) for path in (ROOT / LOCKS).glob("*.txt")} - {lock.path for lock in entries()}
    yield from (f"{path} has no inputs -> name it in {INPUTS}/locks.yml" for path in sorted(strangers))


def disowned() -> Iterator[str]:
    """What the releases say of the locks that is not so."""
    for path, name, wanted in named():
        if not (ROOT / LOCKS / name).exists():
            yield f"{path} names {name}, which {LOCKS} does not have"
        elif (found := sha256(LOCKS / name)) != wanted:
            yield f"{path} names {name} with sha256 {wanted}, it has {found} -> make lock"
    for path in sorted((ROOT / RELEASES).glob("*.yml")):
        release = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "base" in release:
            continue
        for python in release["vllm"]["locks"]:
            variant = release | {"python": {"version": python}}
            errors = release_errors(variant, str(ROOT / LOCKS), "", minimum_driver="0")
            yield from (f"{path.relative_to(ROOT)} for Python {python}: {error}" for error in errors)


def uv_pins() -> dict[str, str]:
    """A requirement with its hash of each uv that a release of the tree names, and the first file that does."""
    pattern = re.compile(r"\buv:\s*\{?\s*version:\s*([\w.]+),?\s+sha256:\s*([0-9a-f]{64})")
    found: dict[str, str] = {}
    for path in files("*.yml", "*.md"):
        for version, digest in pattern.findall((ROOT / path).read_text(encoding="utf-8")):
            found.setdefault(f"uv=={version} --hash=sha256:{digest}", str(path))
    return found


def check(shell: Shell) -> None:
    """Every lock answers its inputs today and holds what it may; every release names locks and a uv that are real."""
    wrong = [*disowned(), *findings(entries(), shell)]
    platform = ("--only-binary", ":all:", "--platform", "manylinux2014_x86_64")
    for pin, path in uv_pins().items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "uv.txt").write_text(f"{pin}\n", encoding="utf-8")
            try:
                shell.run("python", "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *platform,
                    "--dest", folder, "--requirement", f"{folder}/uv.txt")  # fmt: skip
            except GateError as error:
                wrong.append(f"{path}: {pin} is not on the index: {error}")
    fail_with(wrong, "findings in the locks; where a change is meant: make lock", shell)


def main(names: list[str]) -> int:
    """Resolve the named locks, all without a name."""
    known = {lock.name: lock for lock in entries()}
    if unknown := [name for name in names if name not in known]:
        print(f"no such lock: {', '.join(unknown)}; {INPUTS}/locks.yml has {', '.join(known)}", file=sys.stderr)
        return 2
    with Path(os.devnull).open("w", encoding="utf-8") as log:
        try:
            write([known[name] for name in names or known], Shell(log, live=True))
        except GateError as error:
            print(f"nothing was written: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
