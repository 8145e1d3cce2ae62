# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of model_plan: against published sizes, against the measurement on one H200, and against itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.h20.fleet.plugins.filter import model_plan
from ansible_collections.h20.fleet.plugins.module_utils import _model_fit
from testbed.hub import tiny_model

plan = model_plan.FilterModule().filters()["model_plan"]

GIB = 1024**3
H20_141G = {"gpus": 8, "memory_mib": 143771}
H20_96G = {"gpus": 8, "memory_mib": 97871}
#: DeepSeek-V3: total_size of the index of V3 and R1.
CHECKPOINT = 688_586_727_753
V3: dict[str, Any] = json.loads((Path(__file__).parent / "models/deepseek-v3.json").read_text(encoding="utf-8"))
#: What one GPU of eight computes: the model that was measured.
SLICE: dict[str, Any] = V3 | {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "moe_intermediate_size": 256,
    "intermediate_size": 2304,
    "vocab_size": 16160,
    "num_nextn_predict_layers": 0,
}
LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MIXTRAL: dict[str, Any] = LLAMA | {
    "max_position_embeddings": 32768,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
TP8: dict[str, Any] = {"tensor-parallel-size": 8}
PP2: dict[str, Any] = TP8 | {"pipeline-parallel-size": 2, "nnodes": 2}
DP8: dict[str, Any] = {"data-parallel-size": 8, "enable-expert-parallel": True}
MTP: dict[str, Any] = {"speculative-config": {"method": "mtp", "num_speculative_tokens": 1}}
MEASURED: dict[str, Any] = {"gpu-memory-utilization": 0.95, "max-model-len": 8192}


def loaded(config: dict[str, Any], **layout: Any) -> list[int]:
    return _model_fit.weights(_model_fit.read_model(config), _model_fit.Layout(**layout))


@pytest.mark.parametrize(
    ("config", "published"),
    [(V3, CHECKPOINT), (LLAMA, 16_060_522_496), (MIXTRAL, 93_405_585_408)],
    ids=["DeepSeek-V3", "Llama-3-8B", "Mixtral-8x7B"],
)
def test_shapes_add_up_to_the_published_checkpoint(config: dict[str, Any], published: int) -> None:
    assert _model_fit.checkpoint_bytes(_model_fit.read_model(config)) == pytest.approx(published, rel=1e-4)


def test_the_tiny_model_of_the_test_bed_adds_up_and_fits() -> None:
    files = tiny_model.build_model("first")
    size = sum(len(content) for path, content in files.items() if path.endswith(".safetensors"))
    arguments = {"dtype": "bfloat16", "max-model-len": 1024, "max-num-seqs": 8, "kv-cache-memory-bytes": 2**28}
    found = plan(json.loads(files["config.json"]), H20_141G, arguments, size)
    assert (found["fits"], found["kv_cache_bytes"]) == (True, 2**28)
    assert found["kv_tokens"] == 2**28 // (576 * 2 * 2)


def test_weights_of_a_tensor_parallel_rank_are_those_measured() -> None:
    assert loaded(SLICE) == loaded(V3, tensor=8)
    assert loaded(V3, tensor=8)[0] / GIB == pytest.approx(79.62, rel=0.002)


@pytest.mark.parametrize(
    ("config", "arguments"), [(SLICE, {}), (V3, TP8)], ids=["the slice on one GPU", "the model on eight"]
)
@pytest.mark.parametrize(("dtype", "tokens"), [("auto", 732_624), ("fp8", 1_465_280)])
def test_tokens_of_the_cache_are_those_measured(
    config: dict[str, Any], arguments: dict[str, Any], dtype: str, tokens: int
) -> None:
    found = plan(config, H20_141G, MEASURED | arguments | {"kv-cache-dtype": dtype})
    assert found["fits"] is True
    assert found["kv_tokens"] == pytest.approx(tokens, rel=0.02)


@pytest.mark.parametrize(
    ("kv_cache_dtype", "layers", "size"), [("auto", None, 70_272), ("fp8", None, 35_136), ("auto", 62, 71_424)]
)
def test_latent_cache_of_a_token(kv_cache_dtype: str, layers: int | None, size: int) -> None:
    for tensor in (1, 8):
        assert _model_fit.kv_bytes_per_token(_model_fit.read_model(V3), kv_cache_dtype, layers, tensor) == size


@pytest.mark.parametrize(("tensor", "size"), [(1, 131_072), (4, 32_768), (8, 16_384), (16, 16_384)])
def test_cache_of_grouped_heads_is_split_as_far_as_there_are_heads(tensor: int, size: int) -> None:
    assert _model_fit.kv_bytes_per_token(_model_fit.read_model(LLAMA), tensor=tensor) == size


@pytest.mark.parametrize(
    ("profile", "arguments", "weights", "tokens"),
    [
        # facts of section 2.3: 44 GiB left at 0.92 on 141 GB, 6 to 8 GiB at 0.95 on 96 GB
        (H20_141G, TP8, (79, 80), (600_000, 680_000)),
        (H20_96G, TP8 | {"gpu-memory-utilization": 0.95, "max-num-seqs": 64}, (79, 80), (90_000, 120_000)),
        # 93.9 GiB of weights as on disk; vLLM's copy of the unpacking matrices adds 1.9 where attention is not split
        (H20_141G, DP8, (93, 97), (150_000, 300_000)),
        (H20_141G, PP2, (38, 42), (2_000_000, 3_000_000)),
    ],
    ids=["TP8 on 141 GB", "TP8 on 96 GB", "DP8+EP8", "TP8xPP2"],
)
def test_figures_of_the_layouts_are_plausible(
    profile: dict[str, Any], arguments: dict[str, Any], weights: tuple[int, int], tokens: tuple[int, int]
) -> None:
    found = plan(V3, profile, arguments, CHECKPOINT)
    assert weights[0] * GIB < found["weights_per_gpu_bytes"] < weights[1] * GIB
    assert tokens[0] < found["kv_tokens"] < tokens[1]
    length = found["max_model_len_wanted"]
    assert found["concurrency"] == pytest.approx(found["kv_tokens"] / length, abs=0.01)
    assert found["fits"] is (found["kv_tokens"] >= length)


@pytest.mark.parametrize("utilization", [0.92, 0.95, 1.0])
def test_data_parallel_experts_do_not_fit_96_gb(utilization: float) -> None:
    found = plan(V3, H20_96G, DP8 | {"gpu-memory-utilization": utilization}, CHECKPOINT)
    assert (found["fits"], found["max_model_len"], found["kv_tokens"]) == (False, 0, 0)
    assert found["reason"].startswith("DP8+EP8: no length fits: weights alone take 95.8 GiB of a GPU of which vLLM ")
    assert found["remedy"].startswith("spread the model over more GPUs")


def test_what_does_not_fit_is_refused_with_the_length_that_does() -> None:
    found = plan(V3, H20_96G, TP8 | {"gpu-memory-utilization": 0.95, "max-num-seqs": 64}, CHECKPOINT)
    assert found["fits"] is False
    assert found["reason"] == (
        "TP8: 79.5 GiB of weights and 4.9 GiB of headroom leave 6.0 GiB of a GPU's 90.4 GiB for the KV cache, 91,644 tokens;"
        " one request of 163,840 tokens needs 10.7 GiB"
    )
    assert found["remedy"] == "set max-model-len to 91136 or less"


@pytest.mark.parametrize("profile", [H20_141G, H20_96G], ids=["141 GB", "96 GB"])
@pytest.mark.parametrize("utilization", [0.9, 0.92, 0.95])
@pytest.mark.parametrize("arguments", [TP8, TP8 | {"kv-cache-dtype": "fp8"}, TP8 | MTP, PP2, DP8])
def test_the_length_that_is_named_fits_and_the_next_does_not(
    profile: dict[str, Any], utilization: float, arguments: dict[str, Any]
) -> None:
    arguments = arguments | {"gpu-memory-utilization": utilization}
    length = plan(V3, profile, arguments)["max_model_len"]
    automatic = plan(V3, profile, arguments | {"max-model-len": "auto"})
    assert automatic["max_model_len_wanted"] == automatic["max_model_len"] == length
    assert automatic["fits"] is (length > 0)
    assert length % 1024 == 0
    assert length == 0 or plan(V3, profile, arguments | {"max-model-len": length})["fits"] is True
    assert plan(V3, profile, arguments | {"max-model-len": length + 1024})["fits"] is False


@pytest.mark.parametrize(
    ("changes", "grows"),
    [
        ({"gpu-memory-utilization": 0.93}, True),
        ({"kv-cache-dtype": "fp8"}, True),
        ({"enforce-eager": True}, True),
        ({"max-num-seqs": 64}, True),
        ({"max-num-batched-tokens": 4096}, True),
        ({"max-num-batched-tokens": 16384}, False),
        (MTP, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_what_gives_and_takes_tokens(changes: dict[str, Any], grows: bool) -> None:
    before, after = (plan(V3, H20_141G, TP8 | more)["kv_tokens"] for more in ({}, changes))
    assert (after > before) is grows
    assert after != before


def test_stages_hold_every_layer_once_and_the_last_is_never_the_largest() -> None:
    for layers in range(1, 64):
        for pipeline in range(1, layers + 1):
            split = _model_fit.stages(layers, pipeline)
            assert [index for stage in split for index in stage] == list(range(layers))
            assert max(map(len, split)) - min(map(len, split)) <= 1
            assert len(split[-1]) == min(map(len, split))


@pytest.mark.parametrize("config", [V3, LLAMA, MIXTRAL], ids=["DeepSeek-V3", "Llama-3-8B", "Mixtral-8x7B"])
@pytest.mark.parametrize("drafting", [False, True])
def test_stages_add_up_to_the_whole(config: dict[str, Any], drafting: bool) -> None:
    drafting = drafting and "num_nextn_predict_layers" in config
    embedding = config["vocab_size"] * config["hidden_size"] * 2
    for pipeline in (2, 3, 4):
        parts = loaded(config, pipeline=pipeline, drafting=drafting)
        assert len(parts) == pipeline
        again = embedding if drafting else 0  # the drafter embeds its tokens in the last stage
        assert sum(parts) == pytest.approx(loaded(config, drafting=drafting)[0] + again, abs=pipeline)


def test_expert_parallel_ranks_hold_all_experts_once() -> None:
    experts = 58 * 256 * 3 * 7168 * 2048
    one, eight = loaded(V3)[0], loaded(V3, data=8, expert=True)[0]
    assert one - eight == pytest.approx(experts * 7 / 8, rel=1e-3)
    assert loaded(V3, data=8, expert=False)[0] == pytest.approx(eight, rel=1e-6)


@pytest.mark.parametrize(
    ("profile", "arguments", "evidence", "remedy"),
    [
        (H20_141G, {"tensor-parallel-size": 16}, "TP16 needs 16 GPUs of a host that has 8", "2 hosts (fleet_replica)"),
        (
            H20_141G,
            TP8 | {"pipeline-parallel-size": 2},
            "TP8xPP2 needs 16 GPUs of a host that has 8",
            "2 hosts (fleet_replica)",
        ),
        (H20_141G, DP8 | TP8, "TP8xDP8+EP64 needs 64 GPUs of a host that has 8", "8 hosts (fleet_replica)"),
        (H20_141G, DP8 | {"tensor-parallel-size": 2, "data-parallel-size-local": 8}, "needs 16 GPUs", "2 hosts"),
        ({"gpus": 4, "memory_mib": 143771}, TP8, "TP8 needs 8 GPUs of a host that has 4", "2 hosts (fleet_replica)"),
        (H20_141G, {"tensor-parallel-size": 6}, "splits 128 attention heads over 6 GPUs", "divisor of 128"),
        (None, {"tensor-parallel-size": 6}, "splits 128 attention heads over 6 GPUs", "divisor of 128"),
        (H20_141G, {"tensor-parallel-size": 32, "nnodes": 4}, "no multiple of the FP8 block of 128", "lower"),
        (H20_141G, {"data-parallel-size": 32, "nnodes": 4}, "cuts the expert width of 2,048", "enable-expert-parallel"),
        (H20_141G, {"pipeline-parallel-size": 64, "nnodes": 8}, "more stages than the model has layers (61)", "lower"),
        (H20_141G, {"tensor-parallel-size": 0}, "a size of the layout is below 1", "1 or more"),
        (H20_141G, TP8 | {"max-model-len": 163841}, "more than the 163,840 tokens", "set max-model-len to 163840 or"),
        (H20_141G, {}, "TP1: no length fits: weights alone take 628.8 GiB", "spread the model over more GPUs"),
        (H20_96G, TP8 | {"gpu-memory-utilization": 0.87}, "no length fits: weights take 79.5 GiB and the", "spread"),
        (H20_141G, TP8 | {"kv-cache-memory-bytes": 2**36}, "kv-cache-memory-bytes asks for 64.0 GiB", "bytes to 58"),
        (
            H20_141G,
            TP8 | {"kv-cache-memory-bytes": 2**30},
            "TP8: kv-cache-memory-bytes is 1.0 GiB, 15,279 tokens",
            "max-model-len to 14336 or",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_reason_and_remedy(
    profile: dict[str, Any] | None, arguments: dict[str, Any], evidence: str, remedy: str
) -> None:
    found = plan(V3, profile, arguments, CHECKPOINT)
    assert found["fits"] is False
    assert evidence in found["reason"]
    assert remedy in found["remedy"]


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        (TP8 | {"pipeline-parallel-size": 2, "distributed-executor-backend": "ray"}, 16),
        (DP8 | {"data-parallel-size": 16, "data-parallel-size-local": 8}, 16),
        (PP2, 16),
    ],
)
def test_layouts_over_several_hosts_are_taken(arguments: dict[str, Any], gpus: int) -> None:
    found = plan(V3, H20_141G, arguments | {"max-model-len": 8192})
    assert (found["fits"], found["gpus"]) == (True, gpus)


def test_the_stage_that_overflows_decides_where_the_size_of_the_cache_is_given() -> None:
    """The last of two stages has fewer layers to cache, and the prediction layer and the head beside them."""
    first, last = (plan(V3, H20_141G, PP2 | MTP | {"kv-cache-memory-bytes": size}) for size in (2**30, 101_000_000_000))
    assert last["fits"] is False
    assert last["weights_per_gpu_bytes"] > first["weights_per_gpu_bytes"]


def test_a_cache_of_a_few_tokens_serves_a_short_context() -> None:
    arguments = TP8 | {"kv-cache-memory-bytes": 70_272 * 900}
    assert plan(V3, H20_141G, arguments | {"max-model-len": 512})["fits"] is True
    refused = plan(V3, H20_141G, arguments | {"max-model-len": 1024})
    assert (refused["fits"], refused["remedy"]) == (False, "set max-model-len to 900 or less")


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in V3.items() if name != key}


@pytest.mark.parametrize(
    ("config", "arguments", "size", "told"),
    [
        (None, {}, None, "its config.json is not known"),
        ({}, {}, None, "its config.json is not known"),
        ({"text_config": V3}, {}, None, "no num_hidden_layers"),
        (without("vocab_size"), {}, None, "no vocab_size"),
        (V3 | {"hidden_size": "wide"}, {}, None, "no hidden_size"),
        (V3 | {"index_topk": 2048}, {}, None, "sparse attention"),
        (V3 | {"quantization_config": {"quant_method": "awq"}}, {}, None, "its quantization is awq"),
        (V3 | {"quantization_config": "awq"}, {}, None, "cannot be told"),
        (V3 | {"torch_dtype": "float8"}, {}, None, "its dtype is float8"),
        (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, {}, None, "not all attend"),
        (V3, {"kv-cache-dtype": "fp8_ds_mla"}, None, "fp8_ds_mla has a layout"),
        (V3, TP8, CHECKPOINT // 2, "files have 320.6 GiB and its shapes add up to 641.3 GiB"),
        (V3, {"tensor-parallel-size": "all"}, None, "tensor-parallel-size is 'all', which is no number"),
        (V3, {"speculative-config": {"model": "drafter"}}, None, "speculative decoding by a draft model"),
        (V3, {"speculative-config": "{"}, None, "Expecting"),
        (V3, {"speculative-config": ["mtp"]}, None, "list"),
    ],
)
def test_what_cannot_be_told_is_said_and_not_refused(
    config: dict[str, Any] | None, arguments: dict[str, Any], size: int | None, told: str
) -> None:
    found = plan(config, H20_141G, arguments, size)
    assert found["fits"] is None
    assert told in found["reason"]
    assert found["remedy"]


def test_a_checkpoint_that_differs_by_a_hundredth_is_still_the_model() -> None:
    verdicts = [plan(V3, H20_141G, TP8, round(CHECKPOINT * share))["fits"] for share in (0.98, 0.991, 1.009, 1.02)]
    assert verdicts == [None, True, True, None]


@pytest.mark.parametrize("profile", [None, {}])
def test_without_a_gpu_nothing_is_refused_and_what_is_known_is_told(profile: dict[str, Any] | None) -> None:
    found = plan(V3, profile, TP8 | {"kv-cache-memory-bytes": 70_272 * 1024, "max-model-len": 8192}, CHECKPOINT)
    assert (found["fits"], found["kv_tokens"], found["max_model_len"]) == (None, 1024, 1024)
    bare = plan(V3, profile, TP8, CHECKPOINT)
    assert (bare["fits"], bare["kv_tokens"], bare["concurrency"]) == (None, None, None)
    assert bare["weights_per_gpu_bytes"] == loaded(V3, tensor=8)[0]


@pytest.mark.parametrize(
    ("written", "meant"), [(8192, 8192), ("8192", 8192), ("128k", 128_000), ("128K", 131_072), ("25.6k", 25_600)]
)
def test_lengths_are_read_as_vllm_reads_them(written: object, meant: int) -> None:
    assert _model_fit.read_layout({"max-model-len": written}).max_model_len == meant


@pytest.mark.parametrize(
    ("arguments", "drafting"),
    [
        ({}, False),
        (MTP, True),
        ({"speculative-config": json.dumps(MTP["speculative-config"])}, True),
        ({"spec-method": "mtp", "spec-tokens": 1}, True),
        ({"speculative-config": {"method": "ngram"}}, False),
    ],
)
def test_the_prediction_layer_counts_where_it_drafts(arguments: dict[str, Any], drafting: bool) -> None:
    assert _model_fit.read_layout(arguments).drafting is drafting
    assert plan(V3, None, TP8 | arguments)["kv_bytes_per_token"] == (71_424 if drafting else 70_272)


def test_a_model_without_a_prediction_layer_cannot_draft() -> None:
    assert plan(SLICE, H20_141G, MTP)["reason"] == "the model has no layer that predicts further tokens"
