# SPDX-License-Identifier: Apache-2.0
"""Serving profiles as data: what vLLM is started with for a purpose, each option and variable with its reason and where that comes from.

docs/serving.md shows them as tables; a unit test holds the two together, and another holds every profile against the options of each version of vLLM that it
is valid for, as its own parser lists them (roles/vllm_service/files/options/, written by ``make parsers``).

What a profile leaves out is left to vLLM on purpose: its automatic choice of attention, expert and linear kernels, of dtype, prefix caching, chunked prefill
and asynchronous scheduling is right on Hopper, and an option that says what is so anyway hides the ones that matter.
"""

from __future__ import annotations

import dataclasses
import typing as t

#: vLLM whose parser was read for the profiles: from this version on, and the first that nobody has looked at.
VERSIONS = ("0.26.0", "0.34.0")

ARITHMETIC = "docs/model_fit.md"
MEASURED = "one H200, vLLM 0.26: docs/serving.md"


@dataclasses.dataclass(frozen=True)
class Setting:
    """The value of an option or a variable, why, and where the reason comes from."""

    value: t.Any
    reason: str
    source: str


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """The load that a replica gets after each start, before it counts as ready: requests at once, and tokens in and out of each."""

    concurrency: int
    prompt_tokens: int
    answer_tokens: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Profile:
    """What vLLM is started with for a purpose. ``hosts`` are what a replica takes; ``versions`` the vLLM it is valid for, the second excluded."""

    purpose: str
    warm_up: WarmUp
    arguments: dict[str, Setting]
    environment: dict[str, Setting] = dataclasses.field(default_factory=dict)
    versions: tuple[str, str] = VERSIONS


_TP8 = Setting(
    8,
    "each step reads an eighth of the weights on each GPU, which is what a single answer waits for; NVLink carries the all-reduces",
    "vLLM recipes for DeepSeek-V3: TP for low latency",
)
_NO_DEEP_GEMM = Setting(
    "0",
    "DeepGEMM compiles 1,815 kernels at the first start, some 20 minutes on a host whose cache is empty; without it a cold start took 255 s",
    f"{MEASURED}; vLLM recipes name it for the H20. Not compared in speed on an H20",
)

#: Bounds of a warm-up: rounds and seconds at most, and by how much two rounds in a row may differ to be equally fast.
WARM_UP = {"rounds": 8, "seconds": 300, "tolerance": 0.05}


@dataclasses.dataclass(frozen=True)
class Canary:
    """A question to a model, and what its answer must contain."""

    prompt: str
    expected: str


#: The question to a model that nobody knows: any answer will do.
ANY = Canary("Are you there?", "")
#: Models that are known, by repository. Questions that no such model gets wrong; neither was asked of the real weights.
CANARIES = {
    "deepseek-ai/DeepSeek-V3-0324": Canary("What is the capital of France? Answer with its name alone.", "Paris"),
}

_MANY = WarmUp(64, 1024, 128, "the load whose first round ran at 57 to 67 % of the warm speed (docs/serving.md)")

PROFILES: dict[str, Profile] = {
    "latency": Profile(
        "8 x H20 141 GB, one replica for the shortest wait; the default",
        _MANY,
        {
            "tensor-parallel-size": _TP8,
            "max-model-len": Setting(
                65536,
                "nine whole requests of this length fit the KV cache at once; the model goes up to 163,840",
                ARITHMETIC,
            ),
            "speculative-config": Setting(
                {"method": "mtp", "num_speculative_tokens": 1},
                "the model's own prediction layer drafts a token, of which some 80 % are accepted; two or more lose where many answers run at once",
                "vLLM pull request 12755 (81 to 82 %, 1.63 times at one request a second); LMSYS on the H20, 2025-09. Not measured here",
            ),
        },
        {"VLLM_USE_DEEP_GEMM": _NO_DEEP_GEMM},
    ),
    "throughput": Profile(
        "8 x H20 141 GB, eight engines that share the experts, for the most tokens of many requests",
        WarmUp(256, 1024, 128, "32 requests on each of the eight engines"),
        {
            "data-parallel-size": Setting(
                8,
                "attention of each request stays on one GPU, so that its KV cache is held once and not eight times",
                "vLLM recipes for DeepSeek-V3: DP with EP under high load",
            ),
            "enable-expert-parallel": Setting(
                True,
                "each GPU holds 32 whole experts; without it their width of 2048 would be cut into eight and each GPU would read all of them",
                "vLLM's documentation of expert parallel deployment",
            ),
            "max-model-len": Setting(
                32768,
                "six whole requests of this length on each engine, 48 in all; weights and gathered tokens leave 13 GiB a GPU for the cache",
                ARITHMETIC,
            ),
        },
        {"VLLM_USE_DEEP_GEMM": _NO_DEEP_GEMM},
    ),
    "long_context": Profile(
        "8 x H20 141 GB, one replica for documents of up to 163,840 tokens",
        WarmUp(8, 16384, 128, "few requests at once, each with several chunks of a long prompt"),
        {
            "tensor-parallel-size": _TP8,
            "max-model-len": Setting(
                163840,
                "all that the model was made for; four such requests fit at once, and a cache in bf16 needs no evaluation",
                ARITHMETIC,
            ),
            "max-num-seqs": Setting(
                64,
                "the cache is full of long contexts before that; fewer CUDA graphs leave 0.8 GiB more of it",
                ARITHMETIC,
            ),
        },
        {"VLLM_USE_DEEP_GEMM": _NO_DEEP_GEMM},
    ),
    "h20_96g": Profile(
        "8 x H20 96 GB, one replica; tight",
        WarmUp(32, 1024, 128, "what the small cache holds at once, and some"),
        {
            "tensor-parallel-size": _TP8,
            "max-model-len": Setting(
                16384, "five whole requests of this length in the 6 GiB that the weights leave", ARITHMETIC
            ),
            "max-num-seqs": Setting(
                64,
                "more would wait for the small cache anyway; fewer CUDA graphs and logits leave 0.8 GiB more of it",
                ARITHMETIC,
            ),
            "gpu-memory-utilization": Setting(
                0.95,
                "vLLM's 0.92 would leave half of the cache; since 0.21 its profiler counts the CUDA graphs, so that 0.95 does not end out of memory",
                "a public run of DeepSeek-R1 on 8 x 96 GiB at 0.95 (tanjunchen, 2025-04); not measured here",
            ),
        },
        {"VLLM_USE_DEEP_GEMM": _NO_DEEP_GEMM},
    ),
    "two_node": Profile(
        "2 x 8 H20, one replica over two hosts, for room on 96 GB cards",
        _MANY,
        {
            "tensor-parallel-size": _TP8,
            "pipeline-parallel-size": Setting(
                2,
                "between hosts a stage hands on one hidden state a token; TP16 would send an all-reduce a layer over the network",
                "vLLM's documentation of parallelism and scaling",
            ),
            "nnodes": Setting(
                2,
                "vLLM's own multi-node mode, which needs no Ray",
                "vLLM's documentation of parallelism and scaling",
            ),
            "max-model-len": Setting(
                131072, "nine whole requests of this length fit the KV cache on 96 GB cards, 19 on 141 GB", ARITHMETIC
            ),
        },
        {"VLLM_USE_DEEP_GEMM": _NO_DEEP_GEMM},
    ),
    "guide": Profile(
        "8 x H20 141 GB as the hand-written guide means it, corrected",
        _MANY,
        {
            "tensor-parallel-size": _TP8,
            "kv-cache-dtype": Setting(
                "fp8",
                "the guide's: twice the tokens. The checkpoint has no scales for it, so 1.0 is taken: evaluate the answers",
                "the guide; one H200: 4,386 tokens a second against 4,090 of bf16, at 64 requests whose prompts repeat",
            ),
            "max-model-len": Setting(
                8192, "the guide's; a long context is refused where the model would take it", "the guide"
            ),
            "gpu-memory-utilization": Setting(0.95, "the guide's; vLLM's own default is 0.92", "the guide"),
        },
        {"VLLM_USE_DEEP_GEMM": _NO_DEEP_GEMM},
    ),
    "cpu_test": Profile(
        "the CPU build with a model of a few MB, to try the road without a GPU",
        WarmUp(4, 32, 16, "a test asks for little, and the CPU is slow"),
        {
            "dtype": Setting("bfloat16", "what the tiny model's weights are; the CPU build's automatic choice differs", "the test bed"),
            "max-model-len": Setting(1024, "a test asks for little, and the CPU is slow", "the test bed"),
            "max-num-seqs": Setting(8, "fewer buffers", "the test bed"),
            "enforce-eager": Setting(True, "compiling takes longer than the tests", "the test bed"),
            "kv-cache-memory-bytes": Setting(
                268435456, "the CPU build would take 40 % of the host's memory", "the test bed"
            ),
            "structured-outputs-config": Setting(
                {"backend": "xgrammar", "disable_any_whitespace": True},
                "a model with random weights would write blanks between the tokens of JSON for ever",
                "seen with the test bed's model",
            ),
        },
    ),
}  # fmt: skip

#: What an instance with ``tool_calls`` is started with besides.
TOOL_CALLS: dict[str, Setting] = {
    "enable-auto-tool-choice": Setting(
        True, "the model decides whether it calls a tool", "vLLM's documentation of tool calling"
    ),
    "tool-call-parser": Setting(
        "deepseek_v3", "reads the special tokens in which DeepSeek-V3 writes a call", "vLLM's documentation of tool calling"
    ),
    "chat-template": Setting(
        "/usr/local/lib/h20-fleet/deepseek_v3_tools.jinja",
        "the model's own template does not say what tools there are; this one does, in the form that the parser reads back",
        "the role's file; vLLM's wheel has none",
    ),
}  # fmt: skip
