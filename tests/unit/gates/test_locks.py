# SPDX-License-Identifier: Apache-2.0
"""What `make lock` writes and what the gate `locks` finds, without an index."""

from __future__ import annotations

import io

import pytest
from gates import locks
from gates.shell import Shell

OLD, NEW = "a" * 64, "b" * 64


def test_a_hash_is_written_wherever_a_release_names_the_lock() -> None:
    text = f"""
locks:
  "3.11":
    file: vllm-1-py311.txt
    sha256: {OLD}
  "3.12": {{file: vllm-1-py312.txt, sha256: {OLD}}}
  "3.13": {{file: other.txt, sha256: {OLD}}}
"""
    changed = locks.vouch(text, {"vllm-1-py311.txt": NEW, "vllm-1-py312.txt": NEW})
    assert changed == text.replace(OLD, NEW, 2)


def test_a_pin_without_a_hash_is_found() -> None:
    text = f"# made by uv\na==1 \\\n    --hash=sha256:{OLD} \\\n    --hash=sha256:{NEW}\nb==2\nc>=3 \\\n    --hash=sha256:{OLD}\nd @ https://x.test/d.whl\n"
    assert [line.split()[0] for line in locks.without_hash(text)] == ["b==2", "c>=3", "d"]


def test_what_moved_is_named_by_package() -> None:
    assert locks.moved("a==1 \\\nb==2 \\\nc==3 \\\n", "a==1 \\\nb==2.1 \\\nd==4 \\\n") == [
        "b 2 -> 2.1",
        "c 3 -> (gone)",
        "d (new) -> 4",
    ]


def test_every_lock_of_the_tree_is_named_with_its_hash_and_every_uv_with_one() -> None:
    assert list(locks.disowned()) == []
    assert locks.uv_pins()


def test_a_lock_that_is_no_answer_to_its_inputs_is_named_with_what_would_move(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = next(entry for entry in locks.entries() if entry.target_device == "cuda")
    shell = Shell(io.StringIO(), live=False)
    monkeypatch.setattr(locks.Lock, "resolve", lambda _lock, _shell, kept: kept)
    assert list(locks.findings([lock], shell)) == []
    monkeypatch.setattr(
        locks.Lock, "resolve", lambda _lock, _shell, kept: kept.replace("\nvllm==0.32.0 ", "\nvllm==0.32.1 ")
    )
    assert list(locks.findings([lock], shell)) == [f"{lock.path}: vllm 0.32.0 -> 0.32.1"]
