# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of what a model takes of a GPU: weights, KV cache and headroom, and what context length and concurrency follow.

Pure functions of the model's ``config.json``, a hardware profile and vLLM's arguments; docs/model_fit.md has the same arithmetic by hand.
What cannot be told is said to be so: a refusal that is wrong costs more than none.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing as t

MIB = 1024**2
GIB = 1024**3

#: vLLM 0.32's defaults on a GPU of 70 GiB or more (vllm/config/cache.py, vllm/engine/arg_utils.py).
GPU_MEMORY_UTILIZATION = 0.92
MAX_NUM_BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 1024

#: Share of nvidia-smi's total that the driver keeps: 616 of 143,771 MiB on the H200 of tests' capture; torch sees the rest.
DRIVER_RESERVED = 616 / 143771

#: Rows of the workspace in which MLA's prefill unpacks cached context (vllm/model_executor/layers/attention/mla_attention.py).
MLA_WORKSPACE_ROWS = 64 * 1024

#: Bytes an entry of the logits takes while tokens are sampled: bf16 logits, their gathered copy, fp32 logits and probabilities.
LOGIT_BYTES = 12

#: Memory of one captured CUDA graph and layer. Not measured by itself: some 12 MiB for the 61 layers of DeepSeek-V3, taken out of BASE.
GRAPH_BYTES_PER_LAYER = 200 * 1024

#: What else an engine takes: CUDA context, libraries, kernels' workspaces, the allocator's gaps. Calibrated so that the sum meets the one measurement
#: there is: vLLM 0.26 on one H200 with the shapes of a TP8 rank and no all-reduce, 47.95 GiB left of 0.95 utilization beside 79.62 GiB of weights.
BASE = 2_000 * MIB

#: Buffers of NCCL and of vLLM's own all-reduce where an engine has several GPUs. An allowance: the measurement had one GPU.
COMMUNICATION = 400 * MIB

#: The checkpoint may differ by this share, and by the headers of its shards, from what the shapes add up to.
TOLERANCE = 0.01
SHARD_HEADERS = MIB

#: Lengths are told in steps of this many tokens.
LENGTH_STEP = 1024

KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1}
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class UnknownModelError(Exception):
    """The config has not what the arithmetic needs; the text says what."""


@dataclasses.dataclass(frozen=True)
class Mla:
    """Widths of multi-head latent attention; ``q_rank`` is 0 where queries are not compressed."""

    kv_rank: int
    q_rank: int
    rope: int
    nope: int
    value: int


@dataclasses.dataclass(frozen=True)
class Model:
    """The shapes of a decoder; widths are whole, before anything is split."""

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    mla: Mla | None
    dense_width: int
    dense_layers: frozenset[int]
    experts: int
    experts_per_token: int
    expert_width: int
    shared_width: int
    tied: bool
    dtype_bytes: int
    fp8: bool
    block: tuple[int, int] | None
    mtp_layers: int
    longest: int | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How vLLM's arguments spread a model over GPUs, and what of its memory they set."""

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    expert: bool = False
    hosts: int | None = 1
    local_data: int | None = None
    utilization: float = GPU_MEMORY_UTILIZATION
    kv_cache_dtype: str = "auto"
    kv_cache_memory: int | None = None
    max_model_len: int | None = None
    longest_that_fits: bool = False
    batched_tokens: int = MAX_NUM_BATCHED_TOKENS
    sequences: int = MAX_NUM_SEQS
    drafting: bool = False
    eager: bool = False

    @property
    def gpus(self) -> int:
        return self.tensor * self.data * self.pipeline

    @property
    def gpus_here(self) -> int | None:
        """GPUs that it takes of one host; None where something else spreads it."""
        if self.hosts is None:
            return None
        here = self.tensor * self.pipeline * (self.data if self.local_data is None else self.local_data)
        return here if self.local_data is not None else math.ceil(here / max(1, self.hosts))

    @property
    def name(self) -> str:
        sizes = [("TP", self.tensor), ("PP", self.pipeline), ("DP", self.data)]
        name = "x".join(f"{kind}{size}" for kind, size in sizes if size > 1) or "TP1"
        return f"{name}+EP{self.tensor * self.data}" if self.expert and self.tensor * self.data > 1 else name


@dataclasses.dataclass(frozen=True)
class Plan:
    """What follows for one instance. Figures are those of the GPU that binds: of the pipeline stage with the fewest tokens, of one data parallel rank.

    ``fits`` is None where it cannot be told, and so are figures that are not known. ``max_model_len`` is the longest context that fits.
    """

    layout: str
    gpus: int | None
    reason: str
    remedy: str
    fits: bool | None = None
    weights_per_gpu_bytes: int | None = None
    headroom_bytes: int | None = None
    usable_bytes: int | None = None
    kv_cache_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    kv_tokens: int | None = None
    max_model_len: int | None = None
    max_model_len_wanted: int | None = None
    concurrency: float | None = None


def read_model(config: dict[str, t.Any] | None) -> Model:
    """The shapes in a ``config.json``; raises UnknownModelError."""
    if not config:
        raise UnknownModelError("its config.json is not known")
    if "index_topk" in config:
        raise UnknownModelError("sparse attention has an indexer of its own, which the arithmetic does not know")
    if any(kind != "full_attention" for kind in config.get("layer_types") or []):
        raise UnknownModelError("its layers do not all attend to the whole context")
    layers, hidden, heads = (_size(config, key) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    fp8, block = _quantization(config)
    dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    if dtype not in DTYPE_BYTES:
        raise UnknownModelError(f"its dtype is {dtype}")
    experts = int(_first(config, "n_routed_experts", "num_local_experts", "num_experts"))
    expert_width = int(config.get("moe_intermediate_size") or config["intermediate_size"]) if experts else 0
    return Model(
        layers=layers,
        hidden=hidden,
        vocabulary=_size(config, "vocab_size"),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        mla=_mla(config),
        dense_width=_size(config, "intermediate_size"),
        dense_layers=_dense_layers(config, layers) if experts else frozenset(range(layers)),
        experts=experts,
        experts_per_token=int(_first(config, "num_experts_per_tok", "num_experts_per_token")),
        expert_width=expert_width,
        shared_width=expert_width * int(config.get("n_shared_experts") or 0)
        or int(config.get("shared_expert_intermediate_size") or 0),
        tied=bool(config.get("tie_word_embeddings", False)),
        dtype_bytes=DTYPE_BYTES[dtype],
        fp8=fp8,
        block=block,
        mtp_layers=int(config.get("num_nextn_predict_layers") or 0),
        longest=_longest(config),
    )


def _size(config: dict[str, t.Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UnknownModelError(f"its config.json has no {key}")
    return value


def _first(config: dict[str, t.Any], *keys: str) -> t.Any:
    return next((config[key] for key in keys if config.get(key)), 0)


def _mla(config: dict[str, t.Any]) -> Mla | None:
    if not config.get("kv_lora_rank"):
        return None
    return Mla(
        kv_rank=_size(config, "kv_lora_rank"),
        q_rank=int(config.get("q_lora_rank") or 0),
        rope=_size(config, "qk_rope_head_dim"),
        nope=_size(config, "qk_nope_head_dim"),
        value=_size(config, "v_head_dim"),
    )


def _dense_layers(config: dict[str, t.Any], layers: int) -> frozenset[int]:
    first = int(config.get("first_k_dense_replace") or 0)
    every = int(config.get("moe_layer_freq") or 1)
    only = set(config.get("mlp_only_layers") or [])
    return frozenset(index for index in range(layers) if index < first or index % every or index in only)


def _quantization(config: dict[str, t.Any]) -> tuple[bool, tuple[int, int] | None]:
    """Whether the matrices are FP8, and the block that shares a scale."""
    quantization = config.get("quantization_config")
    if not quantization:
        return False, None
    if quantization.get("quant_method") != "fp8":
        raise UnknownModelError(f"its quantization is {quantization.get('quant_method')}")
    block = quantization.get("weight_block_size")
    return True, (int(block[0]), int(block[1])) if block else None


def _longest(config: dict[str, t.Any]) -> int | None:
    """The longest context that vLLM takes for the model; None where rope scaling stretches it by a rule of the model's own."""
    scaling = config.get("rope_scaling")
    if scaling and "kv_lora_rank" not in config:
        return None
    return int(config["max_position_embeddings"]) if config.get("max_position_embeddings") else None


def read_layout(arguments: dict[str, t.Any]) -> Layout:
    """The layout that vLLM's arguments (long names without leading dashes) ask for; raises ValueError for one that is no number."""
    local = arguments.get("data-parallel-size-local")
    length = arguments.get("max-model-len")
    automatic = str(length) in ("auto", "-1")
    elsewhere = arguments.get("distributed-executor-backend") in ("ray", "external_launcher")
    return Layout(
        tensor=_number(arguments, "tensor-parallel-size", 1),
        data=_number(arguments, "data-parallel-size", 1),
        pipeline=_number(arguments, "pipeline-parallel-size", 1),
        expert=bool(arguments.get("enable-expert-parallel", False)),
        hosts=None if elsewhere else _number(arguments, "nnodes", 1),
        local_data=None if local is None else _number(arguments, "data-parallel-size-local", 1),
        utilization=float(arguments.get("gpu-memory-utilization", GPU_MEMORY_UTILIZATION)),
        kv_cache_dtype=str(arguments.get("kv-cache-dtype", "auto")),
        kv_cache_memory=_number(arguments, "kv-cache-memory-bytes", 0) or None,
        max_model_len=None if automatic or length is None else _number(arguments, "max-model-len", 0),
        longest_that_fits=automatic,
        batched_tokens=_number(arguments, "max-num-batched-tokens", MAX_NUM_BATCHED_TOKENS),
        sequences=_number(arguments, "max-num-seqs", MAX_NUM_SEQS),
        drafting=_is_drafting(arguments),
        eager=bool(arguments.get("enforce-eager", False)),
    )


def _number(arguments: dict[str, t.Any], key: str, default: int) -> int:
    """An integer as vLLM reads it: 128k is 128,000 and 128K is 131,072."""
    text = str(arguments.get(key, default)).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)", text)
    if not match:
        raise ValueError(f"vLLM argument {key} is {text!r}, which is no number")
    suffix = match[2]
    power = "kmgt".find(suffix.lower()) + 1 if suffix else 0
    return int(float(match[1]) * (1000 if suffix.islower() else 1024) ** power)


def _is_drafting(arguments: dict[str, t.Any]) -> bool:
    """Whether the model's own multi-token prediction layer drafts; another drafter's size is not known here."""
    speculative = arguments.get("speculative-config") or {}
    if isinstance(speculative, str):
        speculative = json.loads(speculative)
    method = speculative.get("method") or arguments.get("spec-method")
    if method in ("mtp", "deepseek_mtp"):
        return True
    if method == "ngram" or not (method or speculative):
        return False
    raise ValueError(
        f"speculative decoding by {method or 'a draft model'} takes memory that the arithmetic does not know"
    )


def _matrix(model: Model, outputs: int, inputs: int) -> float:
    """Bytes of a linear layer's weight, its block scales (fp32) included."""
    if not model.fp8:
        return outputs * inputs * model.dtype_bytes
    scales = math.ceil(outputs / model.block[0]) * math.ceil(inputs / model.block[1]) if model.block else 1
    return outputs * inputs + 4 * scales


def _attention(model: Model, layout: Layout, *, loaded: bool) -> float:
    tensor = layout.tensor
    if model.mla is None:
        query = _matrix(model, model.heads * model.head_dim, model.hidden)
        key = _matrix(model, model.kv_heads * model.head_dim, model.hidden)
        return 2 * query / tensor + 2 * key / min(tensor, model.kv_heads)
    mla = model.mla
    width = model.heads * (mla.nope + mla.rope)
    if mla.q_rank:  # The compressing half is on every GPU, the other one is split by heads.
        query = _matrix(model, mla.q_rank, model.hidden) + _matrix(model, width, mla.q_rank) / tensor
    else:
        query = _matrix(model, width, model.hidden) / tensor
    compressed = _matrix(model, mla.kv_rank + mla.rope, model.hidden)
    unpacking = model.heads * (mla.nope + mla.value)
    split = _matrix(model, unpacking, mla.kv_rank) + _matrix(model, model.hidden, model.heads * mla.value)
    # At load vLLM adds a copy of the unpacking matrix without quantization, which decoding multiplies by.
    copy = unpacking * mla.kv_rank * model.dtype_bytes if loaded else 0
    return query + compressed + (split + copy) / tensor


def _mlp(model: Model, width: int) -> float:
    return 2 * _matrix(model, width, model.hidden) + _matrix(model, model.hidden, width)


def _layer(model: Model, layout: Layout, index: int, *, loaded: bool) -> float:
    """Bytes of one decoder layer on one GPU. Experts are shared out over all ranks, by expert or by width; all else is whole on each data parallel rank."""
    norms = 2 * model.hidden + ((model.mla.kv_rank + model.mla.q_rank) if model.mla else 0)
    size = _attention(model, layout, loaded=loaded) + norms * model.dtype_bytes
    if index in model.dense_layers or not model.experts:
        return size + _mlp(model, model.dense_width) / layout.tensor
    ranks = layout.tensor * layout.data
    here = math.ceil(model.experts / ranks) if layout.expert else model.experts / ranks
    router = model.experts * (model.hidden * model.dtype_bytes + 4)
    shared = _mlp(model, model.shared_width) / layout.tensor if model.shared_width else 0
    return size + router + shared + here * _mlp(model, model.expert_width)


def _prediction_layer(model: Model, layout: Layout, *, loaded: bool) -> float:
    """A multi-token prediction layer: a decoder layer and the projection before it; embedding and head are the model's own."""
    projection = (2 * model.hidden * model.hidden + 3 * model.hidden) * model.dtype_bytes
    return _layer(model, layout, model.layers, loaded=loaded) + projection


def checkpoint_bytes(model: Model) -> int:
    """Bytes of all tensors as they lie on disk, where the prediction layer has copies of embedding and head."""
    whole = Layout()
    embedding = model.vocabulary * model.hidden * model.dtype_bytes
    layers = sum(_layer(model, whole, index, loaded=False) for index in range(model.layers))
    prediction = model.mtp_layers * (_prediction_layer(model, whole, loaded=False) + 2 * embedding)
    return round(layers + prediction + embedding * (1 if model.tied else 2) + model.hidden * model.dtype_bytes)


def stages(layers: int, pipeline: int) -> list[range]:
    """The layers of each pipeline stage, as vLLM splits them: what is left over goes to the stages before the last."""
    sizes = [layers // pipeline] * pipeline
    for stage in range(2, layers % pipeline + 2):
        sizes[-stage] += 1
    starts = [sum(sizes[:stage]) for stage in range(pipeline)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def weights(model: Model, layout: Layout) -> list[int]:
    """Bytes of weights on a GPU of each pipeline stage once vLLM has loaded them."""
    embedding = model.vocabulary * model.hidden * model.dtype_bytes / layout.tensor
    sizes = []
    split = stages(model.layers, layout.pipeline)
    for number, indexes in enumerate(split):
        first, last = number == 0, number == len(split) - 1
        size = sum(_layer(model, layout, index, loaded=True) for index in indexes)
        if last:
            size += model.hidden * model.dtype_bytes
            size += _prediction_layer(model, layout, loaded=True) if layout.drafting else 0
        # The head of a tied model is its embedding, so that a last stage that is not the first has a copy.
        tables = (first or (last and model.tied)) + (last and not model.tied)
        tables += last and not first and layout.drafting and not model.tied  # the drafter embeds its tokens there
        sizes.append(round(size + tables * embedding))
    return sizes


def kv_bytes_per_token(model: Model, kv_cache_dtype: str = "auto", layers: int | None = None, tensor: int = 1) -> int:
    """Bytes that one token keeps in a GPU's cache; raises UnknownModelError for a dtype of another layout.

    The latent vector of MLA is the same for all heads and so whole on every GPU; heads of other attention are split.
    """
    layers = model.layers if layers is None else layers
    if kv_cache_dtype != "auto" and kv_cache_dtype not in KV_BYTES:
        raise UnknownModelError(f"kv-cache-dtype {kv_cache_dtype} has a layout that the arithmetic does not know")
    size = model.dtype_bytes if kv_cache_dtype == "auto" else KV_BYTES[kv_cache_dtype]
    if model.mla:
        return (model.mla.kv_rank + model.mla.rope) * layers * size
    return 2 * max(1, model.kv_heads // tensor) * model.head_dim * layers * size


def headroom(model: Model, layout: Layout, length: int, layers: int) -> int:
    """Bytes that an engine takes beside weights and KV cache: the peak of its profiling run, CUDA graphs, CUDA itself, communication."""
    state = layout.batched_tokens * model.hidden * model.dtype_bytes
    # Residual, hidden state, the shared expert's output and the routed ones' stay while one of these peaks comes and goes.
    peak = 4 * state + max(
        _attention_peak(model, layout, length),
        _expert_peak(model, layout),
        3 * layout.batched_tokens * model.dense_width // layout.tensor * model.dtype_bytes,
        layout.sequences * model.vocabulary * LOGIT_BYTES,
    )
    graphs = 0 if layout.eager else _graphs(layout) * GRAPH_BYTES_PER_LAYER * layers
    return round(BASE + graphs + peak + (COMMUNICATION if layout.gpus > 1 else 0))


def _attention_peak(model: Model, layout: Layout, length: int) -> float:
    if model.mla is None:
        width = 2 * (model.heads + model.kv_heads) * model.head_dim
        return layout.batched_tokens * width / layout.tensor * model.dtype_bytes
    mla = model.mla
    rows = min(max(8 * length, 4 * layout.sequences * 16), MLA_WORKSPACE_ROWS)
    unpacked = rows * (mla.nope + mla.value)
    batch = layout.batched_tokens * 2 * (mla.nope + mla.rope + mla.value)
    return (unpacked + batch) * model.heads / layout.tensor * model.dtype_bytes


def _expert_peak(model: Model, layout: Layout) -> float:
    """The two workspaces of the Triton experts: each token once for each of its experts. Data parallel ranks gather each other's tokens first."""
    if not model.experts:
        return 0
    width = model.expert_width if layout.expert else model.expert_width / (layout.tensor * layout.data)
    tokens = layout.batched_tokens * layout.data
    pairs = tokens * model.experts_per_token * (max(width, model.hidden) + max(2 * width, model.hidden))
    gathered = 2 * tokens * model.hidden if layout.data > 1 else 0
    return (pairs + gathered) * model.dtype_bytes


def _graphs(layout: Layout) -> int:
    """How many CUDA graphs vLLM captures: piecewise ones for its grid of batch sizes, whole ones for those that can be all decoding."""
    grid = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return sum((size <= 2 * layout.sequences) + (size <= layout.sequences) for size in grid)


def torch_memory(memory_mib: int) -> int:
    """Bytes of a GPU that torch sees, from the total that nvidia-smi tells."""
    return round(memory_mib * MIB * (1 - DRIVER_RESERVED))


def plan(
    config: dict[str, t.Any] | None,
    weight_bytes: int | None,
    hardware_profile: dict[str, t.Any] | None,
    arguments: dict[str, t.Any],
) -> Plan:
    """What follows for a model on the GPUs of ``hardware_profile`` (with gpus and memory_mib) by vLLM's ``arguments``; never raises for their content."""
    try:
        layout = read_layout(arguments)
    except (ValueError, TypeError, AttributeError) as error:
        return Plan("", None, str(error), "correct the argument, or judge by vLLM's own log")
    try:
        model = read_model(config)
        kv_bytes_per_token(model, layout.kv_cache_dtype)
    except (UnknownModelError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Plan(layout.name, layout.gpus, f"the model's memory cannot be told: {error}", "judge by vLLM's own log")
    refusal = _impossible(model, layout, hardware_profile)
    if refusal:
        return Plan(layout.name, layout.gpus, *refusal, fits=False)
    return _checked(_figures(model, layout, hardware_profile), model, weight_bytes)


def _impossible(model: Model, layout: Layout, profile: dict[str, t.Any] | None) -> tuple[str, str] | None:
    """Why no GPU memory would make the layout work, and what to do; None where it can."""
    if min(layout.tensor, layout.data, layout.pipeline) < 1:
        return f"{layout.name}: a size of the layout is below 1", "set every parallel size to 1 or more"
    if model.heads % layout.tensor:
        return (
            f"{layout.name} splits {model.heads} attention heads over {layout.tensor} GPUs",
            f"set tensor-parallel-size to a divisor of {model.heads}",
        )
    if model.mla is None and model.kv_heads % layout.tensor and layout.tensor % model.kv_heads:
        return (
            f"{layout.name} splits {model.kv_heads} KV heads over {layout.tensor} GPUs",
            f"set tensor-parallel-size to a divisor or a multiple of {model.kv_heads}",
        )
    if layout.pipeline > model.layers:
        return (
            f"{layout.name} has more stages than the model has layers ({model.layers})",
            "lower pipeline-parallel-size",
        )
    if layout.drafting and not model.mtp_layers:
        return "the model has no layer that predicts further tokens", "take speculative-config out of the arguments"
    return _blocks(model, layout) or _gpu_count(layout, profile)


def _blocks(model: Model, layout: Layout) -> tuple[str, str] | None:
    """FP8 blocks are not cut: each GPU's share of a feed-forward width is a multiple of the block."""
    if not model.block:
        return None
    ranks = 1 if layout.expert else layout.tensor * layout.data
    widths = [("dense", model.dense_width, layout.tensor)] if model.dense_layers else []
    widths += [("expert", model.expert_width, ranks)] if model.experts else []
    for kind, width, share in widths:
        if width % (share * model.block[0]):
            return (
                f"{layout.name} cuts the {kind} width of {width:,} into {share} shares, which is no multiple of the FP8 block of {model.block[0]}",
                "lower tensor-parallel-size" + (", or set enable-expert-parallel" if kind == "expert" else ""),
            )
    return None


def _gpu_count(layout: Layout, profile: dict[str, t.Any] | None) -> tuple[str, str] | None:
    here = layout.gpus_here
    if profile is None or here is None or here <= profile["gpus"]:
        return None
    hosts = math.ceil(layout.gpus / profile["gpus"])
    return (
        f"{layout.name} needs {here} GPUs of a host that has {profile['gpus']}",
        f"lower the parallel sizes, or serve it from {hosts} hosts (fleet_replica)",
    )


def _figures(model: Model, layout: Layout, profile: dict[str, t.Any] | None) -> Plan:
    """The plan by the figures of the stage that binds."""
    wanted = None if layout.longest_that_fits else layout.max_model_len or model.longest
    total = torch_memory(profile["memory_mib"]) if profile else None
    usable = total if total is None or layout.kv_cache_memory else round(total * layout.utilization)
    found = []
    for number, (indexes, size) in enumerate(
        zip(stages(model.layers, layout.pipeline), weights(model, layout), strict=True)
    ):
        layers = len(indexes) + (layout.drafting and number == layout.pipeline - 1)
        reserve = headroom(model, layout, wanted or model.longest or LENGTH_STEP, layers)
        token = kv_bytes_per_token(model, layout.kv_cache_dtype, layers, layout.tensor)
        left = None if usable is None else usable - size - reserve
        cache = left if layout.kv_cache_memory is None else layout.kv_cache_memory
        tokens = None if cache is None else max(0, cache // token)
        longest = (
            None if tokens is None else min(tokens // LENGTH_STEP * LENGTH_STEP or tokens, model.longest or tokens)
        )
        found.append(
            Plan(
                layout=layout.name,
                gpus=layout.gpus,
                weights_per_gpu_bytes=size,
                headroom_bytes=reserve,
                usable_bytes=usable,
                kv_cache_bytes=None if cache is None else max(0, cache),
                kv_bytes_per_token=token,
                kv_tokens=tokens,
                max_model_len=longest,
                max_model_len_wanted=wanted or longest,
                concurrency=None if tokens is None else round(tokens / max(1, wanted or longest or 0), 2),
                reason="there is no GPU of a known profile to fit the model on",
                remedy="vouch for the hardware with a profile, or judge by vLLM's own log",
            )
        )
    binding = min(found, key=lambda entry: (_spare(entry, layout) >= 0, entry.kv_tokens or 0))
    return binding if usable is None else _judged(binding, model, layout)


def _spare(found: Plan, layout: Layout) -> int:
    """Bytes of the GPU that are left beside weights, headroom and the cache that is asked for; below 0 nothing fits."""
    taken = (found.weights_per_gpu_bytes or 0) + (found.headroom_bytes or 0) + (layout.kv_cache_memory or 0)
    return (found.usable_bytes or 0) - taken


def _judged(found: Plan, model: Model, layout: Layout) -> Plan:
    """The verdict on figures that are all known."""
    size, reserve, usable = (
        t.cast(int, value) for value in (found.weights_per_gpu_bytes, found.headroom_bytes, found.usable_bytes)
    )
    cache, tokens, longest = (
        t.cast(int, value) for value in (found.kv_cache_bytes, found.kv_tokens, found.max_model_len)
    )
    wanted, token = found.max_model_len_wanted or 0, t.cast(int, found.kv_bytes_per_token)
    more = "spread the model over more GPUs, or use GPUs with more memory"
    asked = layout.kv_cache_memory or 0
    if _spare(found, layout) < 0:
        beside = f"weights take {gib(size)} and the engine some {gib(reserve)} beside them"
        return dataclasses.replace(
            found,
            fits=False,
            max_model_len=0,
            reason=f"{layout.name}: no length fits: "
            + (f"weights alone take {gib(size)}" if size > usable else beside)
            + (f", kv-cache-memory-bytes asks for {gib(asked)}" if asked else "")
            + f" of a GPU of which vLLM may use {gib(usable)}",
            remedy=f"lower kv-cache-memory-bytes to {usable - size - reserve}" if size + reserve < usable else more,
        )
    if model.longest and wanted > model.longest:
        return dataclasses.replace(
            found,
            fits=False,
            reason=f"max-model-len {wanted:,} is more than the {model.longest:,} tokens that the model was made for",
            remedy=f"set max-model-len to {longest} or less",
        )
    if tokens < max(wanted, 1):
        room = (
            f"kv-cache-memory-bytes is {gib(asked)}"
            if asked
            else f"{gib(size)} of weights and {gib(reserve)} of headroom leave {gib(cache)} of a GPU's {gib(usable)} for the KV cache"
        )
        return dataclasses.replace(
            found,
            fits=False,
            reason=f"{layout.name}: {room}, {tokens:,} tokens; one request of {wanted:,} tokens needs {gib(wanted * token)}",
            remedy=f"set max-model-len to {longest} or less" if longest else more,
        )
    replica = f", {layout.data} caches" if layout.data > 1 else ""
    return dataclasses.replace(
        found,
        fits=True,
        remedy="",
        reason=f"{layout.name}: {gib(size)} of weights a GPU and a KV cache of {gib(cache)}, {tokens:,} tokens{replica}:"
        f" {found.concurrency:.1f} requests of {wanted:,} tokens at once",
    )


def _checked(found: Plan, model: Model, weight_bytes: int | None) -> Plan:
    """The plan, or "could not tell" where the checkpoint is not what the shapes add up to."""
    expected = checkpoint_bytes(model)
    if weight_bytes is None or abs(weight_bytes - expected) <= TOLERANCE * expected + SHARD_HEADERS:
        return found
    return dataclasses.replace(
        found,
        fits=None,
        reason=f"the model's files have {gib(weight_bytes)} and its shapes add up to {gib(expected)}: the arithmetic does not know this architecture",
        remedy="judge by vLLM's own log",
    )


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / GIB:,.1f} GiB"
