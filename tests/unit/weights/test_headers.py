# SPDX-License-Identifier: Apache-2.0
"""headers: what safetensors say of themselves, against their size and their index."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.module_utils._weights import headers

SHARDS = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}
FIRST, SECOND = SHARDS


def shard(header: object, data: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def tensors(*names: str) -> dict[str, Any]:
    return {"__metadata__": {"format": "pt"}} | {
        name: {"dtype": "U8", "shape": [4], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two shards with their index."""
    for name, names in SHARDS.items():
        (tmp_path / name).write_bytes(shard(tensors(*names), 4 * len(names)))
    index = {"weight_map": {tensor: name for name, names in SHARDS.items() for tensor in names}}
    (tmp_path / headers.INDEX).write_text(json.dumps(index))
    return tmp_path


def test_whole_shards_have_no_problem(model: Path) -> None:
    assert headers.problems(model) == []
    assert headers.read(model / FIRST) == {"a", "b"}


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(shard(tensors("a"), 4))
    assert headers.problems(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has 0 bytes and no header"),
        (b"1234567", "has 7 bytes and no header"),
        (bytes(100), "has 100 bytes and no header"),
        (b"\xff" * 100, "has 100 bytes and no header"),
        (shard(tensors("a", "b"), 8)[:30], "has 30 bytes and no header"),
        (shard(tensors("a", "b"), 7), "its header describes"),
        (shard(tensors("a", "b"), 9), "its header describes"),
        (shard({"a": {"data_offsets": [4, 8]}}, 8), "has a header that cannot be read"),
        (shard({"a": {}}, 0), "has a header that cannot be read"),
        (shard({"a": 1}, 0), "has a header that cannot be read"),
        (shard([], 0), "has a header that cannot be read"),
        (struct.pack("<Q", 5) + b"{...}", "has a header that cannot be read"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "has a header that cannot be read"),
    ],
)
def test_a_torn_file_is_named(model: Path, content: bytes, told: str) -> None:
    (model / FIRST).write_bytes(content)
    [problem] = headers.problems(model)
    assert problem.startswith(f"{FIRST} ")
    assert told in problem


def test_a_shard_of_another_revision_is_named(model: Path) -> None:
    (model / SECOND).write_bytes(shard(tensors("d"), 4))
    assert headers.problems(model) == [
        f"{SECOND} lacks 1 of the tensors that {headers.INDEX} says it has, the first is c"
    ]


def test_a_shard_that_the_index_names_must_be_there(model: Path) -> None:
    (model / SECOND).unlink()
    assert headers.problems(model) == [f"{SECOND} is missing, {headers.INDEX} names it"]


def test_a_shard_that_the_index_does_not_name_is_its_own_affair(model: Path) -> None:
    (model / "consolidated.safetensors").write_bytes(shard(tensors("z"), 4))
    assert headers.problems(model) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": []}}'])
def test_an_index_that_cannot_be_read_is_named(model: Path, text: str) -> None:
    (model / headers.INDEX).write_text(text)
    assert headers.problems(model) == [f"{headers.INDEX} has no weight_map that can be read"]


def test_a_tensor_that_the_index_does_not_name_is_loaded_by_nobody(model: Path) -> None:
    (model / SECOND).write_bytes(shard(tensors("c", "more"), 8))
    assert headers.problems(model) == []


def test_a_folder_without_safetensors_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / headers.INDEX).write_text("{}")
    assert headers.problems(tmp_path) == []
