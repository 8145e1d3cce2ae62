# SPDX-License-Identifier: Apache-2.0
"""vllm_options with a command in the place of vLLM's: its words are told, whatever way it refuses. The gate `parsers` runs it with vLLM itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "roles/vllm_service/files/vllm_options.py"

#: As vllm.entrypoints.cli has it: a command that pulls a file apart by argparse, and a `serve` that would begin.
MAIN = """
import argparse, os, pathlib, sys
from vllm.entrypoints.cli import serve
def main():
    assert os.environ["HOME"] != os.environ["OUTER_HOME"], "vLLM must not write below the home of the caller"
    text = pathlib.Path(sys.argv[3]).read_text()
    assert sys.argv[:3] == ["vllm", "serve", "--config"] and sys.argv[3].endswith(".yaml")
    if "raise" in text:
        raise TypeError("needs --tool-call-parser")
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("--seed", type=int)
    parser.parse_args(text.split())
    print("noise")
    serve.ServeSubcommand.cmd(None)
"""
SERVE = """
class ServeSubcommand:
    @staticmethod
    def cmd(args):
        raise SystemExit("it began to serve")
"""


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    folder = tmp_path / "site/vllm/entrypoints/cli"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parents[1]):
        (package / "__init__.py").touch()
    (folder / "main.py").write_text(MAIN, encoding="utf-8")
    (folder / "serve.py").write_text(SERVE, encoding="utf-8")
    return tmp_path / "site"


def check(vllm: Path, *texts: str) -> subprocess.CompletedProcess[str]:
    files = [vllm / f"{number}.source" for number, _text in enumerate(texts)]
    for path, text in zip(files, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(vllm), "HOME": str(vllm), "OUTER_HOME": str(vllm)}
    command = [sys.executable, "-B", str(PROGRAM), *map(str, files)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_what_the_parser_takes_is_taken_without_a_word(vllm: Path) -> None:
    done = check(vllm, "--seed 1", "--seed 2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--seed first", "argument --seed: invalid int value: 'first' -> correct the arguments of the instance"),
        ("--swap-space 4", "unrecognized arguments: --swap-space 4 -> "),
        ("raise", "TypeError: needs --tool-call-parser -> "),
    ],
)
def test_what_it_refuses_is_told_in_its_words(vllm: Path, text: str, words: str) -> None:
    done = check(vllm, "--seed 1", text)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: vLLM does not take {vllm}/1.source: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_release_without_a_vllm_that_starts_is_named(vllm: Path) -> None:
    (vllm / "vllm/entrypoints/cli/main.py").write_text("import libnuma_that_is_not_there", encoding="utf-8")
    done = check(vllm, "--seed 1")
    assert done.returncode == 1
    assert "has no vLLM that starts: No module named 'libnuma_that_is_not_there' -> run the stage again" in done.stderr
