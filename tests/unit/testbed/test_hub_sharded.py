# SPDX-License-Identifier: Apache-2.0
"""The model of many shards: the same bytes everywhere, whole files of tensors, and what a further revision changes."""

from __future__ import annotations

import json

import pytest
from testbed.hub import repository, sharded

REVISIONS = ("3c4b9975a1f49cd9f6ff4f929b7eb8435e9a1b83", "7568ccecdd320ff873f9db39199182a782d49838")


@pytest.mark.parametrize(("revision", "commit"), list(enumerate(REVISIONS)))
def test_revision_is_the_one_that_scenarios_name(revision: int, commit: str) -> None:
    assert repository.revision_of(repository.tree(sharded.build_sharded(revision))) == commit


def test_shards_are_whole_and_the_index_finds_every_tensor() -> None:
    files = sharded.build_sharded()
    found: dict[str, str] = {}
    for path, content in files.items():
        if path.endswith(".safetensors"):
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length])
            assert header.pop("__metadata__") == {"format": "pt"}
            assert 8 + length + max(tensor["data_offsets"][1] for tensor in header.values()) == len(content)
            found |= dict.fromkeys(header, path)
    assert found == json.loads(files["model.safetensors.index.json"])["weight_map"]
    assert len(set(found.values())) == sharded.SHARDS
    assert 40 << 20 < sum(map(len, files.values())) < 60 << 20


def test_next_revision_changes_one_shard_and_makes_another_longer() -> None:
    first, second = (sharded.build_sharded(revision) for revision in range(2))
    changed = {path for path in second if first[path] != second[path]}
    assert first.keys() - second.keys() == {"notes/100 % of ü+β.txt"}
    assert changed == {
        "README.md",
        "model.safetensors.index.json",
        "model-00003-of-000012.safetensors",
        "model-00006-of-000012.safetensors",
    }
    assert [len(second[path]) - len(first[path]) for path in sorted(changed) if path.startswith("model-")] == [
        0,
        sharded.GROWTH,
    ]
