# SPDX-License-Identifier: Apache-2.0
"""A DeepSeek-V3 of some five megabytes: the true architecture, tensor names and file layout with small numbers, made by the standard library alone.

vLLM's MLA takes no other latent and head sizes than the real model's (kv_lora_rank 512, rope 64, nope 128, value 128); everything else is shrunk.
The weights come from seeded random bits, so that every build has the same bytes, and a release file can name the revision and the hashes.
The head knows letters and the blank alone: what the model says is noise, but noise that can be read, logged and compared.
"""

from __future__ import annotations

import math
import random
from typing import Final

from testbed.hub.safetensors import Tensor, as_json, checkpoint

SHARDS: Final = 3
HIDDEN: Final = 256
LAYERS: Final = 2
DENSE_LAYERS: Final = 1  # the first is dense as in the real model, the second a mixture of experts
HEADS: Final = 4
Q_RANK: Final = 128
KV_RANK: Final = 512
ROPE: Final = 64
NOPE: Final = 128
VALUE: Final = 128
FFN: Final = 512
EXPERT_FFN: Final = 64
EXPERTS: Final = 8
VOCABULARY: Final = 320  # a multiple of 64: vLLM pads to that

_BAR: Final = "\uff5c"  # DeepSeek writes its special tokens with a full-width bar
_BLANK: Final = "\u2581"  # and, for the blank, a lower block
_SPECIAL: Final = tuple(
    f"<{_BAR}{name.replace(' ', _BLANK)}{_BAR}>"
    for name in (
        "begin of sentence",
        "end of sentence",
        " pad ",
        "User",
        "Assistant",
        "tool calls begin",
        "tool calls end",
        "tool call begin",
        "tool call end",
        "tool outputs begin",
        "tool outputs end",
        "tool output begin",
        "tool output end",
        "tool sep",
    )
)
_BOS, _EOS, _PAD, _USER, _ASSISTANT = _SPECIAL[:5]

# A bfloat16 is sign, eight bits of exponent, seven of mantissa; these tables turn a random byte into the upper half of a small one.
_SMALL: Final = bytes(
    (byte & 0x80) | (0x3B + (byte & 1)) for byte in range(256)
)  # magnitude 2^-9 to 2^-5: the embedding
_MEDIUM: Final = bytes(
    (byte & 0x80) | 0x3D for byte in range(256)
)  # 2^-5 to 2^-3: the layers, so that they outweigh the embedding
_LARGE: Final = bytes(
    (byte & 0x80) | 0x3E for byte in range(256)
)  # 2^-3 to 2^-1: the head, so that one token clearly wins
_ONE: Final = b"\x80\x3f"
_SPOKEN: Final = b" abcdefghijklmnopqrstuvwxyz"

Shape = tuple[int, ...]
Files = dict[str, bytes]


def _config() -> dict[str, object]:
    """Return config.json: the real model's keys, its quantization and remote code left out."""
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": DENSE_LAYERS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "kv_lora_rank": KV_RANK,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": EXPERT_FFN,
        "moe_layer_freq": 1,
        "n_group": 4,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": Q_RANK,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 2,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": VALUE,
        "vocab_size": VOCABULARY,
    }


def _mlp(prefix: str, width: int) -> dict[str, Shape]:
    """Return the three matrices of a gated feed-forward block `width` wide."""
    return {
        f"{prefix}.gate_proj.weight": (width, HIDDEN),
        f"{prefix}.up_proj.weight": (width, HIDDEN),
        f"{prefix}.down_proj.weight": (HIDDEN, width),
    }


def _layer(index: int) -> dict[str, Shape]:
    """Return the tensors of one decoder layer: multi-head latent attention, then a dense block or a mixture of experts."""
    prefix = f"model.layers.{index}"
    tensors: dict[str, Shape] = {
        f"{prefix}.input_layernorm.weight": (HIDDEN,),
        f"{prefix}.self_attn.q_a_proj.weight": (Q_RANK, HIDDEN),
        f"{prefix}.self_attn.q_a_layernorm.weight": (Q_RANK,),
        f"{prefix}.self_attn.q_b_proj.weight": (HEADS * (NOPE + ROPE), Q_RANK),
        f"{prefix}.self_attn.kv_a_proj_with_mqa.weight": (KV_RANK + ROPE, HIDDEN),
        f"{prefix}.self_attn.kv_a_layernorm.weight": (KV_RANK,),
        f"{prefix}.self_attn.kv_b_proj.weight": (HEADS * (NOPE + VALUE), KV_RANK),
        f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * VALUE),
        f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
    }
    if index < DENSE_LAYERS:
        return tensors | _mlp(f"{prefix}.mlp", FFN)
    tensors[f"{prefix}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
    tensors[f"{prefix}.mlp.gate.e_score_correction_bias"] = (EXPERTS,)
    for expert in range(EXPERTS):
        tensors |= _mlp(f"{prefix}.mlp.experts.{expert}", EXPERT_FFN)
    return tensors | _mlp(f"{prefix}.mlp.shared_experts", EXPERT_FFN)


def _tensors() -> dict[str, Shape]:
    """Return name and shape of every tensor, in the order in which the shards hold them."""
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(LAYERS):
        tensors |= _layer(index)
    return tensors | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def _bfloat16(numbers: random.Random, count: int, table: bytes) -> bytes:
    """Return `count` random bfloat16 values, little endian, their upper bytes mapped by `table`."""
    bits = bytearray(numbers.randbytes(2 * count))
    bits[1::2] = bits[1::2].translate(table)
    return bytes(bits)


def _head(numbers: random.Random) -> bytes:
    """Return lm_head.weight: a random row for each token that is spoken, zeros for every other."""
    spoken = {len(_SPECIAL) + byte for byte in _SPOKEN}
    return b"".join(
        _bfloat16(numbers, HIDDEN, _LARGE) if token in spoken else bytes(2 * HIDDEN) for token in range(VOCABULARY)
    )


def _values(name: str, shape: Shape, seed: str) -> bytes:
    """Return the bytes of a tensor. A seed of its own for each keeps it the same when another changes."""
    numbers = random.Random(f"{seed}/{name}")  # noqa: S311 (the same bytes everywhere are the point)
    count = math.prod(shape)
    if name == "lm_head.weight":
        return _head(numbers)
    if name.endswith("norm.weight"):
        return _ONE * count
    if name.endswith("e_score_correction_bias"):
        return bytes(4 * count)  # float32, as in the real checkpoint
    return _bfloat16(numbers, count, _SMALL if "embed" in name else _MEDIUM)


def _weights(seed: str) -> Files:
    """Return the shards and their index. The shards break between layers, as the real ones do: embedding, layers, head."""
    groups: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    for name, shape in _tensors().items():
        shard = 0 if ".layers.0." in name or "embed" in name else 1 if ".layers." in name else 2
        kind = "F32" if name.endswith("e_score_correction_bias") else "BF16"
        groups[shard][name] = Tensor(kind, shape, _values(name, shape, seed))
    return checkpoint(groups)


def _byte_symbols() -> list[str]:
    """Return the character that stands for each of the 256 bytes in byte-level tokenizers (GPT-2's table)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(0x100 + hidden.index(byte)) for byte in range(256)]


def _tokenizer() -> dict[str, object]:
    """Return tokenizer.json: DeepSeek's special tokens, then one token a byte and no merges."""
    special = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, token in enumerate(_SPECIAL)
    ]
    tokens = [*_SPECIAL, *_byte_symbols()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": _BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": _BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {_BOS: {"id": _BOS, "ids": [0], "tokens": [_BOS]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }


_CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + _USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + _ASSISTANT + "' + (message['content'] or '') + '" + _EOS + "' }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + _ASSISTANT + "' }}{% endif %}"
)


def _tokenizer_config() -> dict[str, object]:
    """Return tokenizer_config.json with the chat template of plain turns."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": _BOS,
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": _EOS,
        "model_max_length": 131072,
        "pad_token": _PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def build_model(seed: str) -> Files:
    """Return the files of the model by path, its weights drawn from `seed`."""
    generation = {"bos_token_id": 0, "do_sample": True, "eos_token_id": 1, "temperature": 0.6, "top_p": 0.95}
    readme = f"# A tiny DeepSeek-V3\n\nRandom weights ({seed}) in the true architecture. It serves tests; it knows nothing.\n"
    return {
        ".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
        "README.md": readme.encode(),
        "config.json": as_json(_config()),
        "generation_config.json": as_json(generation),
        "inference/configs/config_tiny.json": as_json({"vocab_size": VOCABULARY, "dim": HIDDEN, "n_layers": LAYERS}),
        **_weights(seed),
        "tokenizer.json": as_json(_tokenizer()),
        "tokenizer_config.json": as_json(_tokenizer_config()),
    }
