"""Architectures that transformers has no class for, and the class of it that computes the same.

Their repositories bring Python, which Axion never runs. A small model of transformers' class is
stored as they store theirs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Older:
    """
    Attributes:
        sibling: transformers' class.
        changes: of the sibling's small configuration.
        fields: what the sibling's fields are called; None: they are left out.
        more: fields beside them.
        tensors: patterns of the sibling's names, and what replaces them.
        packed: queries, keys and values are one matrix, `rows` one behind the other, or `groups`
            of queries with their keys and values.
    """

    sibling: str
    changes: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, str | None] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[tuple[str, str], ...] = ()
    packed: str = ""


OLDER_NAMES = {
    "AquilaForCausalLM": Older("LlamaForCausalLM"),
    "AquilaModel": Older("LlamaForCausalLM"),
    "ChatGLMForConditionalGeneration": Older("GlmForCausalLM"),
    "ChatGLMModel": Older(
        "GlmForCausalLM",
        {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": False},
        {
            "num_hidden_layers": "num_layers",
            "vocab_size": "padded_vocab_size",
            "intermediate_size": "ffn_hidden_size",
            "head_dim": "kv_channels",
            "rms_norm_eps": "layernorm_epsilon",
            "max_position_embeddings": "seq_length",
            "attention_bias": "add_qkv_bias",
            "num_key_value_heads": "multi_query_group_num",
            "rope_parameters": None,
        },
        {"multi_query_attention": True, "rope_ratio": 1, "rmsnorm": True, "post_layer_norm": True},
        (
            (r"^model\.embed_tokens\.", "transformer.embedding.word_embeddings."),
            (r"^model\.norm\.", "transformer.encoder.final_layernorm."),
            (r"^model\.layers\.", "transformer.encoder.layers."),
            (r"^lm_head\.", "transformer.output_layer."),
            (r"\.self_attn\.qkv_proj\.", ".self_attention.query_key_value."),
            (r"\.self_attn\.o_proj\.", ".self_attention.dense."),
            (r"\.gate_up_proj\.", ".dense_h_to_4h."),
            (r"\.down_proj\.", ".dense_4h_to_h."),
        ),
        "rows",
    ),
    "ExaoneForCausalLM": Older(
        "LlamaForCausalLM",
        {},
        {
            "num_hidden_layers": "num_layers",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        {},
        (
            (r"^model\.embed_tokens\.", "transformer.wte."),
            (r"^model\.norm\.", "transformer.ln_f."),
            (r"^model\.layers\.", "transformer.h."),
            (r"\.self_attn\.o_proj\.", ".attn.attention.out_proj."),
            (r"\.self_attn\.", ".attn.attention."),
            (r"\.input_layernorm\.", ".ln_1."),
            (r"\.post_attention_layernorm\.", ".ln_2."),
            (r"\.mlp\.gate_proj\.", ".mlp.c_fc_0."),
            (r"\.mlp\.up_proj\.", ".mlp.c_fc_1."),
            (r"\.mlp\.down_proj\.", ".mlp.c_proj."),
        ),
    ),
    "InternLM2ForCausalLM": Older(
        "LlamaForCausalLM",
        {},
        {"attention_bias": "bias"},
        {},
        (
            (r"^model\.embed_tokens\.", "model.tok_embeddings."),
            (r"^lm_head\.", "output."),
            (r"\.self_attn\.qkv_proj\.", ".attention.wqkv."),
            (r"\.self_attn\.o_proj\.", ".attention.wo."),
            (r"\.input_layernorm\.", ".attention_norm."),
            (r"\.post_attention_layernorm\.", ".ffn_norm."),
            (r"\.mlp\.gate_proj\.", ".feed_forward.w1."),
            (r"\.mlp\.up_proj\.", ".feed_forward.w3."),
            (r"\.mlp\.down_proj\.", ".feed_forward.w2."),
        ),
        "groups",
    ),
    "InternLMForCausalLM": Older(
        "LlamaForCausalLM", {"attention_bias": True}, {"attention_bias": "bias"}
    ),
    "LLaMAForCausalLM": Older("LlamaForCausalLM"),
    "MPTForCausalLM": Older("MptForCausalLM"),
    "MiMoForCausalLM": Older("Qwen2ForCausalLM", more={"num_nextn_predict_layers": 1}),
    "MiniCPMForCausalLM": Older(
        "GraniteForCausalLM",
        {
            **{"embedding_multiplier": 12.0, "residual_multiplier": 1.4 / 2**0.5},
            **{"attention_multiplier": 0.25, "logits_scaling": 4.0},
        },
        dict.fromkeys(
            (
                *("embedding_multiplier", "residual_multiplier"),
                *("attention_multiplier", "logits_scaling"),
            )
        ),
        {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16},
    ),
    "OrionForCausalLM": Older(
        "StableLmForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        {"layer_norm_eps": "rms_norm_eps", "use_parallel_residual": None, "qk_layernorm": None},
    ),
    "PhiMoEForCausalLM": Older("PhimoeForCausalLM"),
    "RWForCausalLM": Older("FalconForCausalLM"),
    "XverseForCausalLM": Older("LlamaForCausalLM"),
}
OLDER_NAMES["ChatGLMForConditionalGeneration"] = OLDER_NAMES["ChatGLMModel"]


def store_as(architecture: str, path: Path) -> None:
    """Store the sibling's small model at `path` as the older name's."""
    older = OLDER_NAMES[architecture]
    config = json.loads((path / "config.json").read_text())
    sizes = config["num_key_value_heads"] if older.packed else 0
    fields = {older.fields.get(name, name): value for name, value in config.items()}
    fields.pop(None, None)  # type: ignore[call-overload]
    fields |= {"architectures": [architecture], **older.more}
    (path / "config.json").write_text(json.dumps(fields))
    file = path / "model.safetensors"
    tensors = load_file(file)
    if older.packed:
        tensors = _packed(tensors, older.packed, sizes)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in older.tensors:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor.contiguous()
    save_file(renamed, file)


def _packed(tensors: dict[str, Tensor], kind: str, num_kv_heads: int) -> dict[str, Tensor]:
    packed = {name: t for name, t in tensors.items() if not re.search(r"\.[qkv]_proj\.", name)}
    for name in tensors:
        if ".q_proj." in name:
            parts = [tensors[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            if kind == "groups":
                groups = [part.unflatten(0, (num_kv_heads, -1)) for part in parts]
                parts = [torch.cat(groups, dim=1).flatten(0, 1)]
            packed[name.replace(".q_proj.", ".qkv_proj.")] = torch.cat(parts)
    return packed
