# SPDX-License-Identifier: Apache-2.0
"""The tiny DeepSeek-V3: the same bytes everywhere, and a checkpoint that is whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from testbed import hub
from testbed.hub import repository, tiny_model

REVISIONS = {
    "first": "19084726f6d2b3193591a470e97f13c7247dc2c4",
    "second": "6be61bfbeb72a40f268473d6fd399800c4f84206",
}
WIDTH = {"BF16": 2, "F32": 4}


def header(content: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its data begins."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), 8 + length


@pytest.fixture(scope="module")
def files() -> tiny_model.Files:
    return tiny_model.build_model("first")


@pytest.mark.parametrize("seed", hub.SEEDS)
def test_revision_is_the_one_that_releases_name(seed: str) -> None:
    tree = repository.tree(tiny_model.build_model(seed))
    assert repository.revision_of(tree) == REVISIONS[seed]


def test_model_is_small(files: tiny_model.Files) -> None:
    assert sum(map(len, files.values())) < 6_000_000


def test_shards_are_whole_and_the_index_finds_every_tensor(files: tiny_model.Files) -> None:
    index = json.loads(files["model.safetensors.index.json"])
    found: dict[str, str] = {}
    total = 0
    for shard in sorted(path for path in files if path.endswith(".safetensors")):
        tensors, start = header(files[shard])
        assert tensors.pop("__metadata__") == {"format": "pt"}
        assert start % 8 == 0
        end = 0
        for name, tensor in tensors.items():
            assert tensor["data_offsets"][0] == end
            end = tensor["data_offsets"][1]
            assert end - tensor["data_offsets"][0] == WIDTH[tensor["dtype"]] * math.prod(tensor["shape"])
            found[name] = shard
        assert start + end == len(files[shard])
        total += end
    assert found == index["weight_map"]
    assert total == index["metadata"]["total_size"]
    assert len(set(found.values())) == tiny_model.SHARDS


def test_architecture_is_the_real_one(files: tiny_model.Files) -> None:
    config = json.loads(files["config.json"])
    tensors = json.loads(files["model.safetensors.index.json"])["weight_map"]
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    heads = {key: config[key] for key in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")}
    assert heads == {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in tensors
    assert "model.layers.1.mlp.shared_experts.gate_proj.weight" in tensors
    assert sum(name.startswith("model.layers.1.mlp.experts.") for name in tensors) == 3 * config["n_routed_experts"]


def test_tokenizer_knows_every_byte_once(files: tiny_model.Files) -> None:
    tokenizer = json.loads(files["tokenizer.json"])
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) == 256 + len(tokenizer["added_tokens"]) <= json.loads(files["config.json"])["vocab_size"]
    assert all(vocabulary[token["content"]] == token["id"] for token in tokenizer["added_tokens"])


def test_head_speaks_letters_and_the_blank_alone(files: tiny_model.Files) -> None:
    shard = files["model-00003-of-000003.safetensors"]
    tensors, start = header(shard)
    begin = start + tensors["lm_head.weight"]["data_offsets"][0]
    rows = [shard[begin + row : begin + row + 512] for row in range(0, 320 * 512, 512)]
    special = len(json.loads(files["tokenizer.json"])["added_tokens"])
    assert bytes(token - special for token, row in enumerate(rows) if any(row)) == b" abcdefghijklmnopqrstuvwxyz"


def test_revisions_differ_in_their_weights_alone() -> None:
    first, second = (tiny_model.build_model(seed) for seed in hub.SEEDS)
    assert {path for path in first if first[path] != second[path]} == {
        "README.md",
        *(f"model-0000{number}-of-000003.safetensors" for number in (1, 2, 3)),
    }


def test_building_again_touches_nothing(tmp_path: Path) -> None:
    hub.build(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    hub.build(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == times
    tiny, sharded, gated = (
        2 * (11 + 1) + 1,
        (18 + 1) + (17 + 1) + 1,
        8 + 1 + 1,
    )  # files and tree of each revision, repository.json
    assert len(times) == tiny + sharded + gated


def test_blob_id_is_that_of_git() -> None:
    lines = repository.tree({"a.txt": b"hello\n", "b.bin": b"hello\n"})
    assert lines[0] == {"type": "file", "oid": "ce013625030ba8dba906f756967f9e9ca394464a", "size": 6, "path": "a.txt"}
    digest = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert lines[1]["lfs"] == {"oid": digest, "size": 6, "pointerSize": 126}
