"""The table of tiny checkpoints: one row for everything that changes the maths.

Each is an ordinary Hugging Face folder, saved by transformers, with every parameter random
(transformers initialises norms to ones and biases to zeros, which would hide an ignored one).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from axion.parity.sizes import ORIGINAL_LENGTH, TINY, WINDOW
from axion.parity.tiny import build

_MHA = {"num_key_value_heads": 4}
_SIX_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 6, "hidden_size": 48}
_FACTORS = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8]


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        config: fields of the transformers config, over the tiny ones.
        neutral: fields that take the row's knob away; the reference must then answer something
            else. Empty where the knob is a shape, which the strict loader checks.
        beside: fields around `text_config`, of which `config` then is.
        inside: the architecture that the model is stored as the text part of, where transformers
            needs another package to build the whole.
        attention: transformers' implementation to compare with.
    """

    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    neutral: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    inside: str = ""
    attention: str = "eager"


def _llama(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    return Case("LlamaForCausalLM", config, neutral or {})


def _rope(rope_type: str, neutral: dict[str, Any] | None = None, **parameters: Any) -> Case:
    """A Llama with this rope; `neutral` changes the rope, by default to a plain one."""
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0, **parameters}
    plain = {"rope_type": "default", "rope_theta": 10_000.0}
    return _llama(
        rope_parameters=rope,
        neutral={"rope_parameters": plain if neutral is None else {**rope, **neutral}},
    )


def _yarn(neutral: dict[str, Any] | None = None, **parameters: Any) -> Case:
    return _rope(
        "yarn",
        neutral,
        factor=8.0,
        original_max_position_embeddings=ORIGINAL_LENGTH,
        **parameters,
    )


def _longrope(neutral: dict[str, Any] | None = None, **parameters: Any) -> Case:
    return _rope(
        "longrope",
        neutral,
        short_factor=_FACTORS,
        long_factor=[2 * factor + 1 for factor in _FACTORS],
        original_max_position_embeddings=ORIGINAL_LENGTH,
        **parameters,
    )


def _knob(architecture: str, name: str, value: Any, neutral: Any, **config: Any) -> Case:
    """A row for one field of one architecture."""
    return Case(architecture, {**config, name: value}, {name: neutral})


_GRANITE = {"attention_multiplier": 0.25}


def _granite(name: str, value: Any, neutral: Any = 1.0) -> Case:
    return _knob("GraniteForCausalLM", name, value, neutral, **_GRANITE)


def _partial(factor: float) -> dict[str, Any]:
    """A plain rope over this part of a head."""
    return {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": factor}


def _phi3_longrope(partial_rotary_factor: float = 1.0) -> dict[str, Any]:
    factors = _FACTORS[: int(8 * partial_rotary_factor)]
    return _partial(partial_rotary_factor) | {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": [2 * factor + 1 for factor in factors],
    }


_KINDS = ["sliding_attention", "full_attention"]
_GEMMA = {"head_dim": 24, "num_key_value_heads": 2}
_PLAIN_ROPES = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in _KINDS}


def _gemma2(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    window = {"sliding_window": WINDOW}
    return Case("Gemma2ForCausalLM", {**_GEMMA, **window, **config}, neutral or {})


def _gemma3(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    window = {"sliding_window": WINDOW, "layer_types": _KINDS}
    return Case("Gemma3ForCausalLM", {**_GEMMA, **window, **config}, neutral or {})


def _olmo3(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    window = {"sliding_window": WINDOW, "layer_types": _KINDS}
    return Case("Olmo3ForCausalLM", {**window, **config}, neutral or {})


def _cohere2(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    window = {"sliding_window": WINDOW, "layer_types": _KINDS}
    return Case("Cohere2ForCausalLM", {**window, **config}, neutral or {})


def _switched(architecture: str, neutral: dict[str, Any], **config: Any) -> Case:
    """A window with a switch, over all layers."""
    window = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}
    return Case(architecture, {**window, **config}, neutral)


def _ropes(**parameters: Any) -> dict[str, Any]:
    """Ropes of their own for layers with a window and for those without."""
    full = {**_PLAIN_ROPES["full_attention"], **parameters}
    return {"rope_parameters": {**_PLAIN_ROPES, "full_attention": full}}


def _ministral3(beta: float, **config: Any) -> dict[str, Any]:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL_LENGTH // 4,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": beta,
    }
    return {"head_dim": 16, **config, "rope_parameters": rope}


def _mpt(attention: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    return {"attn_config": attention or {}, **_MHA, **config}


def _gpt_neo(neutral: dict[str, Any], **config: Any) -> Case:
    layers = {"attention_types": [[["local", "global"], 1]], "window_size": WINDOW}
    return Case("GPTNeoForCausalLM", {**layers, **_MHA, **config}, neutral)


def _llama4(neutral: dict[str, Any] | None = None, *, inside: str = "", **config: Any) -> Case:
    sizes = {
        **{"num_hidden_layers": 3, "intermediate_size": 32, "intermediate_size_mlp": 96},
        **{"num_local_experts": 6, "head_dim": 16, "no_rope_layers": [1, 0, 1]},
        **{"attention_chunk_size": WINDOW, "floor_scale": 8, "interleave_moe_layer_step": 2},
    }
    return Case("Llama4ForCausalLM", {**sizes, **config}, neutral or {}, inside=inside)


_PLAIN = {"rope_parameters": _PLAIN_ROPES}
_LFM3 = {
    **{"layer_types": ["conv", *_KINDS], "num_hidden_layers": 3, "head_dim": 24},
    "sliding_window": WINDOW,
}
_SEEING = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 198,
}


def _mixtral(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    return Case("MixtralForCausalLM", {"num_local_experts": 4, **config}, neutral or {})


_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _qwen2_moe(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    config = {**_EXPERTS, "shared_expert_intermediate_size": 48, **config}
    return Case("Qwen2MoeForCausalLM", config, neutral or {})


def _qwen3_moe(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    return Case("Qwen3MoeForCausalLM", {**_EXPERTS, **config}, neutral or {})


def _olmoe(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    config = {"num_experts": 6, "num_experts_per_tok": 2, **config}
    return Case("OlmoeForCausalLM", config, neutral or {})


def _glm4_moe(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Case("Glm4MoeForCausalLM", {**experts, **config}, neutral or {})


_DELTA_NET = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
}
_QWEN3_5_MOE = {
    **_EXPERTS,
    **_DELTA_NET,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 32,
    "head_dim": 24,
    "shared_expert_intermediate_size": 48,
}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2}
_NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "ssm_state_size": 16,
    "n_routed_experts": 6,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 48,
    "time_step_min": 1e-30,  # transformers has it for prompts only
}


def _granite_hybrid(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    config = {**_MAMBA2, **_LINEAR, "attention_multiplier": 0.25, **config}
    return Case("GraniteMoeHybridForCausalLM", config, neutral or {})


def _falcon_h1(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    return Case("FalconH1ForCausalLM", {**_MAMBA2, "mamba_d_ssm": 128, **config}, neutral or {})


def _qwen3_next(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    config = {**_EXPERTS, **_DELTA_NET, "shared_expert_intermediate_size": 48, **config}
    return Case("Qwen3NextForCausalLM", {"head_dim": 24, **config}, neutral or {})


def _kimi_linear(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    sizes = {
        **{"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
        **{"linear_num_heads": 3, "linear_head_dim": 32, "kv_lora_rank": 16},
        **{"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20},
        **_EXPERTS,
    }
    return Case("KimiLinearForCausalLM", {**sizes, **config}, neutral or {})


def _glm5_next(neutral: dict[str, Any], **config: Any) -> Case:
    sizes = {
        **{"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        **{"layer_types": ["linear_attention", "indexed_attention", "indexed_attention"]},
        **{"indexer_types": ["full", "full", "shared"], "num_key_value_heads": 4},
        **{"linear_num_heads": 3, "linear_head_dim": 32, "q_lora_rank": 24, "kv_lora_rank": 16},
        **{"qk_nope_head_dim": 20, "v_head_dim": 12, "n_routed_experts": 6},
        **{"num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"index_topk": 12, "index_kpool": 4, "index_n_heads": 16, "index_head_dim": 20},
    }
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}
    vision |= {"out_hidden_size": 64, "projection_intermediate_size": 16, "patch_size": 4}
    return Case(
        "Glm5NextForConditionalGeneration",
        {"model_type": "glm5_next_text", **sizes, **config},
        neutral,
        {"vision_config": vision},
    )


def _qwen4_exp(neutral: dict[str, Any], **config: Any) -> Case:
    sizes = {
        **{**_EXPERTS, **_DELTA_NET, "shared_expert_intermediate_size": 48, "head_dim": 24},
        **{"layer_types": ["linear_attention", "indexed_attention"], "hc_lowrank": 20},
        **{"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 32},
        **{"indexer_budget": 12, "indexer_compress_ratio": 4, "eos_token_id": 90},
        **{"ple_layer_ids": [1], "ngram_vocab_size_base": 100, "split_ngram_parts": 5},
    }
    return Case("Qwen4ExpForCausalLM", {**sizes, **config}, neutral)


def _minimax_m3(neutral: dict[str, Any], **config: Any) -> Case:
    sizes = {
        **{"layer_types": ["minimax_m3_sparse"] * 2, "mlp_layer_types": ["dense", "sparse"]},
        **{"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 32},
        **{"dense_intermediate_size": 80, "shared_intermediate_size": 48, "head_dim": 24},
        **{"index_n_heads": 2, "index_head_dim": 20, "index_block_size": 5},
        **{"index_topk_blocks": 3, "index_local_blocks": 1},
        "rope_parameters": {
            **{"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
        },
    }
    return Case("MiniMaxM3VLForCausalLM", {**sizes, **config}, neutral)


_GLM5_NEXT_SHORT = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "indexed_attention"],
    "indexer_types": ["shared", "full"],
    "mlp_layer_types": ["sparse", "dense"],
}


def _gpt_oss(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    sizes = {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 16}
    return Case("GptOssForCausalLM", {**sizes, "sliding_window": WINDOW, **config}, neutral or {})


_DEEPSEEK_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL_LENGTH,
    "mscale": 1.4,
    "mscale_all_dim": 0.7,
}


def _deepseek(version: str, neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    sizes = {
        **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"first_k_dense_replace": 1, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
        **{"q_lora_rank": 24, "kv_lora_rank": 16},
        **{"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20},
    }
    return Case(f"Deepseek{version}ForCausalLM", {**sizes, **config}, neutral or {})


_INDEXED = {"index_topk": 12, "index_n_heads": 16, "index_head_dim": 20}


def _deepseek_v32(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    return _deepseek("V32", neutral, **{**_INDEXED, **config})


def _glm_moe_dsa(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    case = _deepseek("V32", **{**_INDEXED, "num_hidden_layers": 3, **config})
    return Case("GlmMoeDsaForCausalLM", case.config, neutral or {})


def _axk2(neutral: dict[str, Any], **config: Any) -> Case:
    groups = {"n_group": None, "topk_group": None, "mlp_layer_types": ["dense", "sparse"]}
    sizes = {**_deepseek_v32().config, **groups, "gated_norm_rank": 8}
    return Case("AXK2ForCausalLM", {**sizes, **config}, neutral)


def _hy_v4(neutral: dict[str, Any], **config: Any) -> Case:
    layers = {"num_hidden_layers": 3, "indexer_types": ["full", "full", "shared"]}
    return Case("HYV4ForCausalLM", {**_deepseek_v32().config, **layers, **config}, neutral)


_V4_RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 12}
_V4_ROPES = {
    "main": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    "compress": {
        **{"rope_type": "yarn", "rope_theta": 16_000.0, "partial_rotary_factor": 0.5},
        **{"factor": 8.0, "original_max_position_embeddings": ORIGINAL_LENGTH},
        "attention_factor": 1.0,
    },
}


def _deepseek_v4(neutral: dict[str, Any], **config: Any) -> Case:
    sizes = {
        **{"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 16, "q_lora_rank": 24},
        "layer_types": [
            *("heavily_compressed_attention", "compressed_sparse_attention"),
            "sliding_attention",
        ],
        **{"compress_rates": _V4_RATES, "mlp_layer_types": ["hash_moe", "moe", "moe"]},
        **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"o_groups": 2, "o_lora_rank": 12, "index_n_heads": 16, "index_head_dim": 12},
        **{"index_topk": 5, "sliding_window": WINDOW, "rope_parameters": _V4_ROPES},
        **{"hc_mult": 2, "hc_sinkhorn_iters": 2},
    }
    return Case("DeepseekV4ForCausalLM", {**sizes, **config}, neutral)


def _mistral4(neutral: dict[str, Any], **config: Any) -> Case:
    rope = {"rope_parameters": _ministral3(0.5)["rope_parameters"]}
    return Case("Mistral4ForCausalLM", {**_deepseek("V3").config, **rope, **config}, neutral)


def _mistral_large4(neutral: dict[str, Any], **config: Any) -> Case:
    sizes = {
        **_deepseek_v32().config,
        **{"num_hidden_layers": 4, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
        **{"no_rope_layers": [1, 1, 0, 0], "indexer_types": ["full", "shared", "full", "full"]},
        **{"final_logit_softcapping": 3.0},
    }
    del sizes["q_lora_rank"]
    vision = {"model_type": "pixtral", **_SEEING["vision_config"]}
    return Case(
        "MistralLarge4ForConditionalGeneration",
        {"model_type": "mistral_large4_text", **sizes, **config},
        neutral,
        {"vision_config": vision},
    )


def _dots3_note(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    sizes = {
        **_deepseek_v32().config,
        **{"num_hidden_layers": 3, "n_group": 2, "head_dim": 24, "sliding_window": WINDOW},
        **{"layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"]},
        "shared_experts_intermediate_size": 40,
    }
    # Its configuration takes these as they were before transformers 5.
    swa = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 20}
    swa |= {"kv_lora_rank": 24, "head_dim": 20, "qk_nope_head_dim": 16, "v_head_dim": 12}
    sizes |= {f"swa_{name}": value for name, value in swa.items()}
    return Case("Dots3NoteForCausalLM", {**sizes, **config}, neutral or {})


def _granite_moe(name: str, neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    config = {"num_local_experts": 6, "attention_multiplier": 0.25, **config}
    return Case(f"{name}ForCausalLM", config, neutral or {})


def _cwm(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    # Its configuration takes no None for these.
    config = {"bos_token_id": 1, "head_dim": 24, "sliding_window": WINDOW, **config}
    return Case("CwmForCausalLM", config, neutral or {})


def _granite_swa(
    neutral: dict[str, Any], architecture: str = "GraniteSWAForCausalLM", **config: Any
) -> Case:
    config = {"attention_multiplier": 0.25, "sliding_window": WINDOW, **config}
    return Case(architecture, config, neutral)


def _flex_olmo(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    config = {"num_experts": 6, "num_experts_per_tok": 2, **config}
    return Case("FlexOlmoForCausalLM", config, neutral or {})


def _glm4_moe_lite(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    sizes = {
        **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16},
        **{"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20},
    }
    return Case("Glm4MoeLiteForCausalLM", {**sizes, **config}, neutral or {})


def _exaone4(neutral: dict[str, Any], **config: Any) -> Case:
    window = {"sliding_window": WINDOW, "layer_types": _KINDS}
    return Case("Exaone4ForCausalLM", {**window, **config}, neutral)


def _dots1(neutral: dict[str, Any], **config: Any) -> Case:
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    window = {"sliding_window": WINDOW, "n_shared_experts": 1}
    return Case("Dots1ForCausalLM", {**experts, **window, **config}, neutral)


def _solar_open(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    experts = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Case("SolarOpenForCausalLM", {**experts, **config}, neutral or {})


def _gemma4(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    sizes = {
        **{"num_hidden_layers": 4, "layer_types": 2 * _KINDS, "sliding_window": WINDOW},
        **{"head_dim": 24, "global_head_dim": 32, "vocab_size_per_layer_input": 199},
        "hidden_size_per_layer_input": 16,
    }
    return Case("Gemma4ForCausalLM", {**sizes, **config}, neutral or {})


def _gemma3n(neutral: dict[str, Any] | None = None, *, inside: str = "", **config: Any) -> Case:
    sizes = {
        **{"num_hidden_layers": 4, "layer_types": 2 * _KINDS, "sliding_window": WINDOW},
        **{"head_dim": 24, "vocab_size_per_layer_input": 190, "hidden_size_per_layer_input": 16},
        **{"num_kv_shared_layers": 2, "laurel_rank": 8, "intermediate_size": [96, 80, 64, 96]},
        "pad_token_id": 0,
    }
    return Case("Gemma3nForCausalLM", {**sizes, **config}, neutral or {}, inside=inside)


def _cohere2_moe(neutral: dict[str, Any], **config: Any) -> Case:
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "head_dim": 16}
    window = {"sliding_window": WINDOW, "layer_types": _KINDS}
    return Case("Cohere2MoeForCausalLM", {**experts, **window, **config}, neutral)


def _ernie4_5_moe(neutral: dict[str, Any] | None = None, **config: Any) -> Case:
    experts = {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 32}
    return Case("Ernie4_5_MoeForCausalLM", {**experts, **config}, neutral or {})


_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_DEEPSEEK_OCR = {
    "vision_config": {
        "sam_config": {
            **{**_SMALL, "mlp_dim": 16, "output_channels": 8, "downsample_channels": [8, 16]},
            **{"image_size": 32, "patch_size": 4, "global_attn_indexes": [0], "window_size": 4},
        },
        "encoder_config": {**_SMALL, "intermediate_size": 16, "num_key_value_heads": 2},
    }
}
_BAILING = {
    **{"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    **{"linear_num_heads": 3, "linear_head_dim": 32, "num_mtp_layers": 0, "kv_lora_rank": 16},
    **{"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 20},
    **{"num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"first_k_dense_replace": 1, "n_group": 3, "topk_group": 2},
}
_ZAMBA2 = {
    **{"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    **{"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": None},
    **{"n_mamba_heads": 4, "mamba_d_state": 8, "adapter_rank": 4},
    "time_step_min": 1e-30,  # transformers has it for prompts only
}


def _phimoe(neutral: dict[str, Any], **config: Any) -> Case:
    return Case("PhimoeForCausalLM", {"num_local_experts": 4, **config}, neutral)


def _step3p5(neutral: dict[str, Any], **config: Any) -> Case:
    sizes = {
        **{**_EXPERTS, "share_expert_dim": 48, "head_dim": 24, "query_pre_attn_scalar": 30},
        **{"layer_types": _KINDS, "sliding_window": WINDOW, "num_sliding_attention_heads": 6},
        **{"mlp_layer_types": ["dense", "sparse"], "moe_router_scaling_factor": 1.5},
        **{"swiglu_limits": [0.0, 0.3], "swiglu_limits_shared": [0.4, 0.2]},
        "rope_parameters": {
            "sliding_attention": _partial(1.0) | {"rope_theta": 500.0},
            "full_attention": _partial(0.5),
        },
    }
    del sizes["num_experts"]
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 4, "mlp_ratio": 1.0}
    return Case(
        "Step3p7ForConditionalGeneration",
        {"model_type": "step3p5", "pad_token_id": 0, "n_routed_experts": 6, **sizes, **config},
        neutral,
        {"vision_config": vision},
    )


def _exaone_moe(neutral: dict[str, Any], **config: Any) -> Case:
    window = {"sliding_window": WINDOW, "sliding_window_pattern": 2, "first_k_dense_replace": 1}
    return Case("ExaoneMoeForCausalLM", {**_EXPERTS, **window, **config}, neutral)


CASES: dict[str, Case] = {
    "afmoe": Case(
        "AfmoeForCausalLM",
        {
            **{**_EXPERTS, "num_shared_experts": 2, "num_dense_layers": 1, "head_dim": 24},
            **{"global_attn_every_n_layers": 2, "sliding_window": WINDOW, "route_scale": 1.5},
            **{"mup_enabled": True, "attention_bias": True},
        },
        {"mup_enabled": False},
    ),
    "bailing-hybrid": Case("BailingHybridForCausalLM", _BAILING, {"kda_lower_bound": -1.0}),
    "bailing-hybrid-unbounded": Case(
        "BailingHybridForCausalLM",
        {
            **_BAILING,
            **{"kda_safe_gate": False, "short_conv_kernel_size": 3, "linear_conv_kernel_dim": 3},
            **{"mlp_layer_types": ["sparse", "dense"], "norm_topk_prob": False},
        },
        {"kda_safe_gate": True},
    ),
    "deepseek-seeing": Case(
        "DeepseekOcr2ForConditionalGeneration",
        {
            **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
            **{"n_shared_experts": 2, "mlp_layer_types": ["dense", "sparse"]},
            **{"routed_scaling_factor": 1.7, "topk_method": "group_limited_greedy"},
            **{"n_group": 3, "topk_group": 2},
        },
        {},
        _DEEPSEEK_OCR,
    ),
    "exaone-moe": _exaone_moe({"sliding_window": WINDOW + 1}),
    "exaone-moe-groups": _exaone_moe(
        {"routed_scaling_factor": 1.0},
        **{"n_group": 3, "topk_group": 2, "num_shared_experts": 2, "norm_topk_prob": False},
        mlp_layer_types=["sparse", "dense"],
    ),
    "gpt-bigcode": Case("GPTBigCodeForCausalLM", {}, {"scale_attn_weights": False}),
    "gpt-bigcode-all-heads": Case("GPTBigCodeForCausalLM", {"multi_query": False}),
    "gpt-neox-japanese": Case(
        "GPTNeoXJapaneseForCausalLM",
        {"rope_parameters": _partial(0.5), "intermediate_multiple_size": 3, **_MHA},
        {"rope_parameters": _partial(1.0)},
    ),
    "hyperclovax": Case(
        "HyperCLOVAXForCausalLM",
        {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 0.25},
        {"logits_scaling": 1.0},
    ),
    "hyperclovax-pre-norm": _knob(
        "HyperCLOVAXForCausalLM", "attention_multiplier", 0.5, 0.25, use_post_norm=False
    ),
    "openai-gpt": _knob("OpenAIGPTLMHeadModel", "afn", "gelu", "relu", **_MHA),
    "step3p5": _step3p5({"swiglu_limits": None}),
    "persimmon": _knob("PersimmonForCausalLM", "qk_layernorm", True, False, **_MHA),
    "phimoe": _phimoe({"router_jitter_noise": 0.0}, lm_head_bias=True, attention_bias=True),
    "phimoe-window": _phimoe({"sliding_window": None}, sliding_window=WINDOW),
    "phimoe-longrope": _phimoe(
        {"rope_parameters": _partial(1.0)},
        # transformers takes the short factors for sequences of every length.
        rope_parameters={
            **{"rope_type": "longrope", "rope_theta": 10_000.0},
            **{"short_factor": _FACTORS, "long_factor": _FACTORS},
            **{"short_mscale": 1.3, "long_mscale": 1.3},
            "original_max_position_embeddings": ORIGINAL_LENGTH,
        },
    ),
    "zamba2": Case("Zamba2ForCausalLM", _ZAMBA2),
    "zamba2-adapters": Case(
        "Zamba2ForCausalLM",
        {
            **_ZAMBA2,
            **{"layers_block_type": ["hybrid"] * 3, "num_mem_blocks": 2, "mamba_ngroups": 2},
            **{"num_attention_heads": 2},
            **{"use_shared_attention_adapter": True, "use_mem_rope": True},
            **{"add_bias_linear": True, "rms_norm_eps": 1e-3},
        },
        {"use_mem_rope": False},
    ),
    "llama": _llama(),
    "llama-mha": _llama(num_key_value_heads=4),
    "llama-mqa": _llama(num_key_value_heads=1),
    "llama-head-dim": _llama(head_dim=24),
    "llama-attention-bias": _llama(attention_bias=True, neutral={"attention_bias": False}),
    "llama-mlp-bias": _llama(mlp_bias=True, neutral={"mlp_bias": False}),
    "llama-tied": _llama(tie_word_embeddings=True, neutral={"tie_word_embeddings": False}),
    "llama-gelu": _llama(hidden_act="gelu", neutral={"hidden_act": "silu"}),
    "llama-gelu-tanh": _llama(hidden_act="gelu_pytorch_tanh", neutral={"hidden_act": "gelu"}),
    "llama-norm-eps": _llama(rms_norm_eps=0.1, neutral={"rms_norm_eps": 1e-6}),
    "llama-rope-theta": _rope("default", {"rope_theta": 10_000.0}, rope_theta=500_000.0),
    "llama-rope-linear": _rope("linear", factor=4.0),
    "llama-rope-dynamic": Case(
        "LlamaForCausalLM",
        {
            "max_position_embeddings": ORIGINAL_LENGTH,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
        },
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "llama-rope-llama3": _rope(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=ORIGINAL_LENGTH,
    ),
    "llama-rope-yarn": _yarn(),
    "llama-rope-yarn-attention-factor": _yarn({"attention_factor": None}, attention_factor=1.5),
    "llama-rope-yarn-mscale": _yarn({"mscale": None}, mscale=2.0, mscale_all_dim=0.5),
    "llama-rope-yarn-beta": _yarn(
        {"beta_fast": 32.0, "beta_slow": 1.0}, beta_fast=8.0, beta_slow=2.0
    ),
    "llama-rope-yarn-truncate": _yarn({"truncate": True}, truncate=False),
    "llama-rope-longrope": _longrope(),
    "llama-rope-longrope-factor": _longrope({"factor": 8.0}, factor=2.0),
    "llama-rope-longrope-attention-factor": _longrope(
        {"attention_factor": None}, attention_factor=1.5
    ),
    "qwen2": Case("Qwen2ForCausalLM"),
    "qwen2-tied": Case(
        "Qwen2ForCausalLM", {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    ),
    "qwen3": Case("Qwen3ForCausalLM", {"head_dim": 24}),
    "qwen3-tied": Case(
        "Qwen3ForCausalLM",
        {"head_dim": 16, "tie_word_embeddings": True},
        {"tie_word_embeddings": False},
    ),
    "glm": Case("GlmForCausalLM", {"head_dim": 16}),
    "glm-attention-bias": _knob("GlmForCausalLM", "attention_bias", False, True, head_dim=16),
    "glm-partial-rotary-factor": Case(
        "GlmForCausalLM",
        {"head_dim": 16, "rope_parameters": _partial(0.25)},
        {"rope_parameters": _partial(0.5)},
    ),
    "glm4": Case("Glm4ForCausalLM", {"head_dim": 24}),
    "glm4-attention-bias": _knob("Glm4ForCausalLM", "attention_bias", False, True, head_dim=24),
    "granite": Case("GraniteForCausalLM", _GRANITE),
    "granite-embedding-multiplier": _granite("embedding_multiplier", 12.0),
    "granite-attention-multiplier": _granite("attention_multiplier", 0.02),
    "granite-residual-multiplier": _granite("residual_multiplier", 0.22),
    "granite-logits-scaling": _granite("logits_scaling", 8.0),
    "granite-attention-bias": _granite("attention_bias", True, False),
    "granite-mlp-bias": _granite("mlp_bias", True, False),
    "olmo": Case("OlmoForCausalLM"),
    "olmo-clip-qkv": _knob("OlmoForCausalLM", "clip_qkv", 0.5, None),
    "olmo-attention-bias": _knob("OlmoForCausalLM", "attention_bias", True, False),
    "olmo2": Case("Olmo2ForCausalLM"),
    "olmo2-norm-eps": _knob("Olmo2ForCausalLM", "rms_norm_eps", 0.1, 1e-5),
    "olmo2-attention-bias": _knob("Olmo2ForCausalLM", "attention_bias", True, False),
    "phi": Case("PhiForCausalLM", _MHA),
    "phi-gqa": Case("PhiForCausalLM"),
    "phi-qk-layernorm": _knob("PhiForCausalLM", "qk_layernorm", True, False),
    "phi-norm-eps": _knob("PhiForCausalLM", "layer_norm_eps", 0.1, 1e-5),
    "phi-partial-rotary-factor": _knob(
        "PhiForCausalLM", "rope_parameters", _partial(0.25), _partial(0.5)
    ),
    "phi-tied": _knob("PhiForCausalLM", "tie_word_embeddings", True, False),
    "phi3": Case("Phi3ForCausalLM"),
    "phi3-partial-rotary-factor": _knob(
        "Phi3ForCausalLM", "rope_parameters", _partial(0.75), _partial(1.0)
    ),
    "phi3-longrope": _knob(
        "Phi3ForCausalLM",
        "rope_parameters",
        _phi3_longrope(),
        _partial(1.0),
        original_max_position_embeddings=ORIGINAL_LENGTH,
    ),
    "phi3-longrope-partial": _knob(
        "Phi3ForCausalLM",
        "rope_parameters",
        _phi3_longrope(0.75),
        _partial(0.75),
        original_max_position_embeddings=ORIGINAL_LENGTH,
    ),
    "smollm3": Case("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}),
    "smollm3-no-rope-layer-interval": _knob(
        "SmolLM3ForCausalLM", "no_rope_layer_interval", 2, 3, no_rope_layers=None
    ),
    "smollm3-no-rope-layers": _knob("SmolLM3ForCausalLM", "no_rope_layers", [0, 1], [1, 1]),
    "smollm3-untied": _knob("SmolLM3ForCausalLM", "tie_word_embeddings", False, True),
    "smollm3-attention-bias": _knob("SmolLM3ForCausalLM", "attention_bias", True, False),
    "smollm3-mlp-bias": _knob("SmolLM3ForCausalLM", "mlp_bias", True, False),
    "stablelm": Case("StableLmForCausalLM"),
    "stablelm-qkv-bias": _knob("StableLmForCausalLM", "use_qkv_bias", True, False),
    "stablelm-qk-layernorm": _knob("StableLmForCausalLM", "qk_layernorm", True, False),
    "stablelm-parallel-residual": _knob(
        "StableLmForCausalLM", "use_parallel_residual", True, False
    ),
    "stablelm-partial-rotary-factor": _knob(
        "StableLmForCausalLM", "rope_parameters", _partial(0.5), _partial(0.25)
    ),
    "stablelm-norm-eps": _knob("StableLmForCausalLM", "layer_norm_eps", 0.1, 1e-5),
    "starcoder2": Case("Starcoder2ForCausalLM"),
    "starcoder2-untied": _knob("Starcoder2ForCausalLM", "tie_word_embeddings", False, True),
    "starcoder2-no-bias": _knob("Starcoder2ForCausalLM", "use_bias", False, True),
    "starcoder2-norm-epsilon": _knob("Starcoder2ForCausalLM", "norm_epsilon", 0.1, 1e-5),
    "nemotron": Case("NemotronForCausalLM", {"head_dim": 24}),
    "nemotron-partial-rotary-factor": _knob(
        "NemotronForCausalLM", "rope_parameters", _partial(0.25), _partial(0.5)
    ),
    "nemotron-attention-bias": _knob("NemotronForCausalLM", "attention_bias", True, False),
    "nemotron-mlp-bias": _knob("NemotronForCausalLM", "mlp_bias", True, False),
    "nemotron-norm-eps": _knob("NemotronForCausalLM", "norm_eps", 0.1, 1e-5),
    "gpt-neox": Case("GPTNeoXForCausalLM", _MHA),
    "gpt-neox-no-bias": _knob("GPTNeoXForCausalLM", "attention_bias", False, True, **_MHA),
    "gpt-neox-sequential": _knob(
        "GPTNeoXForCausalLM", "use_parallel_residual", False, True, **_MHA
    ),
    "gpt-neox-partial-rotary-factor": _knob(
        "GPTNeoXForCausalLM", "rope_parameters", _partial(0.5), _partial(0.25), **_MHA
    ),
    "gpt-neox-norm-eps": _knob("GPTNeoXForCausalLM", "layer_norm_eps", 0.1, 1e-5, **_MHA),
    "gpt-neox-tied": _knob("GPTNeoXForCausalLM", "tie_word_embeddings", True, False, **_MHA),
    "gpt2": Case("GPT2LMHeadModel", _MHA),
    "gpt2-inner": Case("GPT2LMHeadModel", {"n_inner": 96, **_MHA}),
    "gpt2-untied": _knob("GPT2LMHeadModel", "tie_word_embeddings", False, True, **_MHA),
    "gpt2-unscaled": _knob("GPT2LMHeadModel", "scale_attn_weights", False, True, **_MHA),
    "gpt2-scaled-by-layer": _knob(
        "GPT2LMHeadModel", "scale_attn_by_inverse_layer_idx", True, False, **_MHA
    ),
    "gpt2-norm-epsilon": _knob("GPT2LMHeadModel", "layer_norm_epsilon", 0.1, 1e-5, **_MHA),
    "gpt2-activation": _knob("GPT2LMHeadModel", "activation_function", "relu", "gelu", **_MHA),
    "gptj": Case("GPTJForCausalLM", {"rotary_dim": 16, **_MHA}),
    "gptj-rotary-dim": _knob("GPTJForCausalLM", "rotary_dim", 6, 8, **_MHA),
    "gptj-norm-epsilon": _knob(
        "GPTJForCausalLM", "layer_norm_epsilon", 0.1, 1e-5, rotary_dim=8, **_MHA
    ),
    "falcon": Case("FalconForCausalLM"),
    "falcon-alibi": Case(
        "FalconForCausalLM",
        {"alibi": True, "bias": True, "multi_query": False},
        {"alibi": False},
        attention="sdpa",  # eager attention adds the bias twice
    ),
    "falcon-mha": _knob("FalconForCausalLM", "multi_query", False, True),
    "falcon-bias": _knob("FalconForCausalLM", "bias", True, False),
    "falcon-sequential": _knob("FalconForCausalLM", "parallel_attn", False, True),
    "falcon-untied": _knob("FalconForCausalLM", "tie_word_embeddings", False, True),
    "falcon-norm-epsilon": _knob("FalconForCausalLM", "layer_norm_epsilon", 0.1, 1e-5),
    "falcon-activation": _knob("FalconForCausalLM", "activation", "relu", "gelu"),
    "falcon-new": Case("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-new-one-norm": _knob(
        "FalconForCausalLM",
        "num_ln_in_parallel_attn",
        1,
        2,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "bloom": Case("BloomForCausalLM", _MHA),
    "bloom-six-heads": Case("BloomForCausalLM", _SIX_HEADS),
    "bloom-residual": _knob(
        "BloomForCausalLM", "apply_residual_connection_post_layernorm", True, False, **_MHA
    ),
    "bloom-norm-epsilon": _knob(
        "BloomForCausalLM",
        "layer_norm_epsilon",
        0.1,
        1e-5,
        tie_word_embeddings=False,
        **_MHA,
    ),
    "mpt": Case("MptForCausalLM", _mpt()),
    "mpt-six-heads": Case("MptForCausalLM", _mpt(**_SIX_HEADS)),
    "mpt-clip": Case("MptForCausalLM", _mpt({"clip_qkv": 0.5}), _mpt()),
    "mpt-scale": Case(
        "MptForCausalLM",
        {**_mpt({"softmax_scale": 0.1}), "layer_norm_epsilon": 0.1},
        {"attn_config": {}},
    ),
    "gpt-neo": _gpt_neo({"window_size": WINDOW + 1}),
    "gpt-neo-local": _gpt_neo(
        {"attention_types": [[["global", "local"], 1]]}, attention_types=[[["local"], 2]]
    ),
    "gpt-neo-norm-epsilon": _gpt_neo(
        {"layer_norm_epsilon": 1e-5},
        layer_norm_epsilon=0.1,
        activation_function="relu",
        tie_word_embeddings=False,
    ),
    "codegen": Case("CodeGenForCausalLM", {"rotary_dim": 16, **_MHA}),
    "codegen-rotary-dim": _knob("CodeGenForCausalLM", "rotary_dim", 6, 8, **_MHA),
    "codegen-norm-epsilon": _knob(
        "CodeGenForCausalLM", "layer_norm_epsilon", 0.1, 1e-5, rotary_dim=8, n_inner=96, **_MHA
    ),
    "xglm": Case("XGLMForCausalLM", {"ffn_dim": 96, **_MHA}),
    "xglm-unscaled": _knob("XGLMForCausalLM", "scale_embedding", False, True, **_MHA),
    "xglm-padding": _knob("XGLMForCausalLM", "pad_token_id", 5, None, ffn_dim=96, **_MHA),
    "xglm-activation": _knob(
        "XGLMForCausalLM",
        "activation_function",
        "relu",
        "gelu",
        tie_word_embeddings=False,
        **_MHA,
    ),
    "opt": Case("OPTForCausalLM", {"ffn_dim": 96, **_MHA}),
    "opt-post-norm": _knob("OPTForCausalLM", "do_layer_norm_before", False, True, **_MHA),
    "opt-no-final-norm": _knob(
        # Small, because logits that nothing normalises are large, and so is their rounding.
        "OPTForCausalLM",
        "_remove_final_layer_norm",
        True,
        False,
        hidden_size=16,
        **_MHA,
    ),
    "opt-no-bias": _knob("OPTForCausalLM", "enable_bias", False, True, **_MHA),
    "opt-no-norm-weights": _knob(
        "OPTForCausalLM", "layer_norm_elementwise_affine", False, True, **_MHA
    ),
    "opt-projected": Case("OPTForCausalLM", {"word_embed_proj_dim": 32, **_MHA}),
    "opt-untied": _knob("OPTForCausalLM", "tie_word_embeddings", False, True, **_MHA),
    "opt-activation": _knob("OPTForCausalLM", "activation_function", "gelu", "relu", **_MHA),
    "cohere": Case("CohereForCausalLM"),
    "cohere-logit-scale": _knob("CohereForCausalLM", "logit_scale", 0.25, 1.0),
    "cohere-qk-norm": _knob("CohereForCausalLM", "use_qk_norm", True, False),
    "cohere-attention-bias": _knob("CohereForCausalLM", "attention_bias", True, False),
    "cohere-norm-eps": _knob("CohereForCausalLM", "layer_norm_eps", 0.1, 1e-5),
    "cohere-untied": _knob("CohereForCausalLM", "tie_word_embeddings", False, True),
    "mistral": Case(
        "MistralForCausalLM", {"sliding_window": WINDOW}, {"sliding_window": WINDOW + 1}
    ),
    "mistral-no-window": Case(
        "MistralForCausalLM", {"sliding_window": None}, {"sliding_window": WINDOW}
    ),
    "mistral-head-dim": Case("MistralForCausalLM", {"sliding_window": 5, "head_dim": 24}),
    "ministral": Case(
        "MinistralForCausalLM",
        {"head_dim": 24, "sliding_window": WINDOW},
        {"sliding_window": WINDOW + 1},
    ),
    "ministral-layer-types": Case(
        "MinistralForCausalLM",
        {"head_dim": 24, "sliding_window": WINDOW, "layer_types": _KINDS},
        {"layer_types": _KINDS[::-1]},
    ),
    "ministral3": Case("Ministral3ForCausalLM", _ministral3(0.5), _ministral3(0.0)),
    "ministral3-window": Case(
        "Ministral3ForCausalLM",
        _ministral3(0.5, head_dim=24, sliding_window=WINDOW),
        {"sliding_window": None},
    ),
    "mistral3": Case(
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral", "head_dim": 24, "sliding_window": WINDOW},
        {"sliding_window": None},
        _SEEING,
    ),
    "mistral3-mistral4": Case(
        "Mistral3ForConditionalGeneration",
        {"model_type": "mistral4", **_mistral4({}).config},
        {"routed_scaling_factor": 3.0},
        {"vision_config": {"model_type": "pixtral", **_SEEING["vision_config"]}},
    ),
    "mistral3-ministral3": Case(
        "Mistral3ForConditionalGeneration",
        {"model_type": "ministral3", **_ministral3(0.5)},
        _ministral3(0.0),
        _SEEING | {"tie_word_embeddings": False},
    ),
    "gemma": Case("GemmaForCausalLM", _GEMMA),
    "gemma-untied": Case(
        "GemmaForCausalLM",
        {**_GEMMA, "tie_word_embeddings": False},
        {"tie_word_embeddings": True},
    ),
    "gemma-act": Case(
        "GemmaForCausalLM", {**_GEMMA, "hidden_act": "silu"}, {"hidden_act": "gelu_pytorch_tanh"}
    ),
    "gemma2": _gemma2({"sliding_window": WINDOW + 1}),
    "gemma2-layer-types": _gemma2({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "gemma2-query-scalar": _gemma2({"query_pre_attn_scalar": 24}, query_pre_attn_scalar=144),
    "gemma2-act": _gemma2(
        {"hidden_activation": "gelu_pytorch_tanh"}, hidden_activation="gelu", num_key_value_heads=1
    ),
    "gemma2-caps": _gemma2(
        {"attn_logit_softcapping": 50.0},
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2-final-cap": _gemma2({"final_logit_softcapping": 30.0}, final_logit_softcapping=3.0),
    "gemma2-no-attention-cap": _gemma2(
        {"attn_logit_softcapping": 50.0}, attn_logit_softcapping=None
    ),
    "gemma2-no-final-cap": _gemma2({"final_logit_softcapping": 30.0}, final_logit_softcapping=None),
    "vaultgemma": Case(
        "VaultGemmaForCausalLM",
        {**_GEMMA, "sliding_window": WINDOW, "attn_logit_softcapping": 2.0},
        {"sliding_window": WINDOW + 1},
    ),
    "gemma3": _gemma3({"sliding_window": WINDOW + 1}),
    "gemma3-layer-types": _gemma3({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "gemma3-pattern": Case(
        "Gemma3ForCausalLM",
        {**_GEMMA, "sliding_window": WINDOW, "sliding_window_pattern": 2},
        {"sliding_window_pattern": 6},
    ),
    "gemma3-theta": _gemma3(_PLAIN),
    "gemma3-rope-linear": _gemma3(
        _ropes(rope_theta=1e6), **_ropes(rope_type="linear", factor=8.0, rope_theta=1e6)
    ),
    "gemma3-query-scalar": _gemma3({"query_pre_attn_scalar": 24}, query_pre_attn_scalar=144),
    "gemma3-final-cap": _gemma3({"final_logit_softcapping": None}, final_logit_softcapping=3.0),
    "olmo3": _olmo3({"sliding_window": WINDOW + 1}),
    "olmo3-layer-types": _olmo3({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "olmo3-yarn": _olmo3(
        _PLAIN,
        **_ropes(rope_type="yarn", factor=8.0, original_max_position_embeddings=ORIGINAL_LENGTH),
    ),
    "olmo3-theta": _olmo3(_PLAIN, **_ropes(rope_theta=500_000.0)),
    "cohere2": _cohere2({"sliding_window": WINDOW + 1}),
    "cohere2-layer-types": _cohere2({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "cohere2-pattern": Case(
        "Cohere2ForCausalLM",
        {"sliding_window": WINDOW, "sliding_window_pattern": 2},
        {"sliding_window_pattern": 4},
    ),
    "cohere2-logit-scale": _cohere2({"logit_scale": 0.0625}, logit_scale=0.5),
    "cohere2-bias": _cohere2({"attention_bias": False}, attention_bias=True),
    "qwen2-window": _switched("Qwen2ForCausalLM", {"use_sliding_window": False}),
    "qwen2-window-layers": _switched(
        "Qwen2ForCausalLM", {"max_window_layers": 0}, max_window_layers=1
    ),
    "qwen2-window-off": _switched(
        "Qwen2ForCausalLM", {"use_sliding_window": True}, use_sliding_window=False
    ),
    "qwen3-window": _switched("Qwen3ForCausalLM", {"sliding_window": WINDOW + 1}, head_dim=24),
    "qwen3-layer-types": _switched(
        "Qwen3ForCausalLM", {"layer_types": _KINDS}, head_dim=24, layer_types=_KINDS[::-1]
    ),
    "smollm3-window": _switched(
        "SmolLM3ForCausalLM", {"use_sliding_window": False}, no_rope_layers=[0, 1]
    ),
    "phi3-window": _knob("Phi3ForCausalLM", "sliding_window", WINDOW, None),
    "starcoder2-window": _knob("Starcoder2ForCausalLM", "sliding_window", WINDOW, None),
    "gemma3-seeing": Case(
        "Gemma3ForConditionalGeneration",
        {**_GEMMA, "sliding_window": WINDOW, "layer_types": _KINDS},
        {"sliding_window": WINDOW + 1},
        _SEEING,
    ),
    "mixtral": _mixtral(),
    "mixtral-top-1": _mixtral({"num_experts_per_tok": 2}, num_experts_per_tok=1),
    "mixtral-window": _mixtral({"sliding_window": None}, sliding_window=WINDOW),
    "mixtral-head-dim": _mixtral(head_dim=24),
    "qwen2-moe": _qwen2_moe(),
    "qwen2-moe-norm": _qwen2_moe({"norm_topk_prob": False}, norm_topk_prob=True),
    "qwen2-moe-no-bias": _qwen2_moe({"qkv_bias": True}, qkv_bias=False),
    "qwen2-moe-sparse-step": _qwen2_moe(decoder_sparse_step=2),
    "qwen2-moe-window": _qwen2_moe(
        {"sliding_window": WINDOW + 1},
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen2-moe-window-off": _qwen2_moe(use_sliding_window=False, sliding_window=WINDOW),
    "qwen3-moe": _qwen3_moe(head_dim=24),
    "qwen3-moe-norm": _qwen3_moe(
        {"norm_topk_prob": False}, norm_topk_prob=True, mlp_only_layers=[0], attention_bias=True
    ),
    "qwen3-moe-window": _qwen3_moe(
        {"use_sliding_window": False}, use_sliding_window=True, sliding_window=WINDOW
    ),
    "olmoe": _olmoe(),
    "olmoe-norm": _olmoe({"norm_topk_prob": False}, norm_topk_prob=True, attention_bias=True),
    "olmoe-clip": _olmoe({"clip_qkv": None}, clip_qkv=0.5),
    "glm4-moe": _glm4_moe(),
    "glm4-moe-groups": _glm4_moe({"topk_group": 2}, n_group=3, topk_group=1),
    "glm4-moe-knobs": _glm4_moe(
        {"norm_topk_prob": True},
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        attention_bias=True,
        use_qk_norm=True,
        head_dim=24,
        n_shared_experts=2,
    ),
    "deepseek-v2": _deepseek("V2"),
    "deepseek-v2-groups": _deepseek(
        "V2",
        {"topk_method": "greedy"},
        topk_method="group_limited_greedy",
        n_group=3,
        topk_group=1,
        q_lora_rank=None,
        attention_bias=True,
    ),
    "deepseek-v2-scaling": _deepseek(
        "V2", {"routed_scaling_factor": 1.0}, routed_scaling_factor=1.7, rms_norm_eps=0.1
    ),
    "deepseek-v2-yarn": _deepseek(
        "V2", {"rope_parameters": {**_DEEPSEEK_YARN, "mscale": 0.7}}, rope_parameters=_DEEPSEEK_YARN
    ),
    "deepseek-v3": _deepseek("V3"),
    "deepseek-v3-groups": _deepseek("V3", {"topk_group": 2}, n_group=3, topk_group=1),
    "deepseek-v3-half-split": _deepseek(
        "V3", {"rope_interleave": True}, rope_interleave=False, q_lora_rank=None
    ),
    "deepseek-v3-norm": _deepseek(
        "V3",
        {"norm_topk_prob": True},
        norm_topk_prob=False,
        routed_scaling_factor=1.3,
        attention_bias=True,
        rms_norm_eps=0.1,
    ),
    "deepseek-v32": _deepseek_v32({"index_topk": 13}),
    "deepseek-v32-groups": _deepseek_v32({"topk_group": 2}, n_group=3, topk_group=1),
    "deepseek-v32-knobs": _deepseek_v32(
        {"norm_topk_prob": True},
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        attention_bias=True,
        mlp_layer_types=["sparse", "dense"],
    ),
    "deepseek-v32-yarn": _deepseek_v32(
        {"rope_parameters": {**_DEEPSEEK_YARN, "mscale_all_dim": 0.0}},
        rope_parameters=_DEEPSEEK_YARN,
    ),
    "axk2": _axk2({"index_topk": 13}),
    "axk2-groups": _axk2({"topk_group": 2}, n_group=3, topk_group=1),
    "hy-v4": _hy_v4({"index_topk": 13}),
    "hy-v4-streams": _hy_v4({"hc_magnitude": 2.0}, hc_mult=3, hc_magnitude=1.5, hc_eps=0.01),
    "hy-v4-limit": _hy_v4({"swiglu_limit": 10.0}, swiglu_limit=0.2, indexer_types=["full"] * 3),
    "deepseek-v4": _deepseek_v4({"index_topk": 6}),
    "deepseek-v4-numbers": _deepseek_v4(
        {"swiglu_limit": 10.0},
        **{"num_hidden_layers": 2, "layer_types": [*_V4_RATES], "mlp_layer_types": ["moe"] * 2},
        # No divisors of the block size.
        compress_rates=dict(zip(_V4_RATES, (3, 7), strict=True)),
        **{"scoring_func": "sigmoid", "routed_scaling_factor": 0.7, "swiglu_limit": 0.2},
        **{"hc_mult": 3, "hc_eps": 0.01, "hc_sinkhorn_iters": 1, "rms_norm_eps": 0.1},
        **{"mlp_bias": True, "hidden_act": "gelu", "sliding_window": 7},
    ),
    "deepseek-v4-ropes": _deepseek_v4(
        {"rope_parameters": _V4_ROPES},
        **{"num_hidden_layers": 2, "mlp_layer_types": ["moe", "hash_moe"]},
        **{"layer_types": ["sliding_attention", "compressed_sparse_attention"], "o_groups": 4},
        rope_parameters={
            "main": _partial(0.25) | {"rope_theta": 500.0},
            "compress": {**_V4_ROPES["compress"], "attention_factor": 1.3, "beta_fast": 8.0},
        },
    ),
    "mistral4": _mistral4({"rope_parameters": _ministral3(0.0)["rope_parameters"]}),
    "mistral4-groups": _mistral4(
        {"norm_topk_prob": True},
        n_group=3,
        topk_group=1,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        rope_interleave=False,
        q_lora_rank=None,
    ),
    "glm-moe-dsa": _glm_moe_dsa({"index_topk": 13}),
    "glm-moe-dsa-shared": _glm_moe_dsa(
        {"indexer_types": ["full", "full", "shared"]}, indexer_types=["full", "shared", "full"]
    ),
    "glm-moe-dsa-frequency": _glm_moe_dsa(
        {"index_topk_freq": 1}, index_topk_freq=2, index_skip_topk_offset=1
    ),
    "glm-moe-dsa-pattern": _glm_moe_dsa(
        {"index_topk_pattern": "FFF"}, index_topk_pattern="FFS", rms_norm_eps=0.1
    ),
    "mistral-large4": _mistral_large4({"index_topk": 13}),
    "mistral-large4-cap": _mistral_large4(
        {"final_logit_softcapping": 30.0}, rope_parameters=_DEEPSEEK_YARN, rms_norm_eps=0.1
    ),
    "mistral-large4-shared": _mistral_large4(
        {"kv_source_layers": None}, kv_source_layers=[0, 0, 2, 2], attention_bias=True
    ),
    "mistral-large4-interval": _mistral_large4(
        {"no_rope_layer_interval": 2},
        no_rope_layers=None,
        no_rope_layer_interval=3,
        indexer_types=None,
        index_topk_freq=2,
        index_skip_topk_offset=1,
        routed_scaling_factor=1.7,
        n_group=2,
    ),
    "dots3-note": _dots3_note({"index_topk": 13}),
    "dots3-note-window": _dots3_note({"sliding_window": WINDOW + 1}, attention_bias=True),
    "dots3-note-full": _dots3_note({"use_dsa": True}, use_dsa=False, norm_topk_prob=False),
    "dots3-note-ropes": _dots3_note(
        {"swa_rope_theta": 50_000.0}, swa_rope_theta=500.0, rope_theta=10_000.0, rms_norm_eps=0.01
    ),
    "dots3-note-yarn": _dots3_note(
        {"rope_parameters": _DEEPSEEK_YARN | {"factor": 2.0}},
        rope_parameters=_DEEPSEEK_YARN,
        layer_types=None,
        first_k_dense_replace=0,
        moe_layer_freq=2,
        routed_scaling_factor=1.7,
    ),
    "dots3-note-seeing": replace(
        _dots3_note(),
        architecture="Dots3NoteForConditionalGeneration",
        beside={
            "vision_config": {
                **_SEEING["vision_config"],
                **{
                    "num_attention_heads": 1,
                    "pyramid_num_routed": [-1],
                    "moe_intermediate_size": 16,
                },
                **{"adapter_in_dim": 16, "adapter_out_dim": 64},
            },
            "audio_config": {
                "whisper_config": {"d_model": 16, "encoder_layers": 1, "encoder_ffn_dim": 16}
                | {"encoder_attention_heads": 2},
                **{"downsample_hidden_size": 4, "adapter_input_size": 16, "adapter_out_dim": 64},
            },
        },
    ),
    "deepseek-v3-yarn": _deepseek(
        "V3",
        {"rope_parameters": {**_DEEPSEEK_YARN, "mscale_all_dim": 0.0}},
        rope_parameters=_DEEPSEEK_YARN,
    ),
    "gpt-oss": _gpt_oss({"sliding_window": WINDOW + 1}),
    "gpt-oss-layer-types": _gpt_oss({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "gpt-oss-swiglu-limit": _gpt_oss({"swiglu_limit": 7.0}, swiglu_limit=0.5),
    "gpt-oss-swiglu-alpha": _gpt_oss({"swiglu_alpha": 1.702}, swiglu_alpha=0.9),
    "gpt-oss-no-bias": _gpt_oss({"attention_bias": True}, attention_bias=False),
    "granite-moe": _granite_moe("GraniteMoe"),
    "granite-moe-multipliers": _granite_moe(
        "GraniteMoe",
        {"embedding_multiplier": 1.0},
        embedding_multiplier=3.0,
        attention_multiplier=0.3,
        residual_multiplier=0.7,
        logits_scaling=4.0,
    ),
    "granite-moe-shared": _granite_moe("GraniteMoeShared", shared_intermediate_size=40),
    "granite-moe-shared-none": _granite_moe(
        "GraniteMoeShared",
        {"attention_bias": False},
        shared_intermediate_size=0,
        attention_bias=True,
    ),
    "arcee": Case("ArceeForCausalLM"),
    "arcee-bias": _knob("ArceeForCausalLM", "mlp_bias", True, False, attention_bias=True),
    "seed-oss": Case("SeedOssForCausalLM", {"head_dim": 24}),
    "seed-oss-output-bias": _knob(
        "SeedOssForCausalLM", "attention_out_bias", True, False, attention_bias=False
    ),
    "cwm": _cwm({"sliding_window": WINDOW + 1}),
    "cwm-layer-types": _cwm({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "helium": Case("HeliumForCausalLM", {"head_dim": 16}),
    "helium-bias": _knob("HeliumForCausalLM", "attention_bias", True, False, head_dim=16),
    "ernie4-5": Case("Ernie4_5ForCausalLM", {"head_dim": 24}),
    "ernie4-5-bias": _knob("Ernie4_5ForCausalLM", "use_bias", True, False, head_dim=24),
    "granite-swa": _granite_swa({"sliding_window": WINDOW + 1}),
    "granite-swa-theta": _granite_swa(
        {"layer_rope_theta": [10_000.0, 10_000.0]}, layer_rope_theta=[0, 500_000.0]
    ),
    "granite-swa-multipliers": _granite_swa(
        {"embedding_multiplier": 1.0},
        embedding_multiplier=3.0,
        residual_multiplier=0.7,
        logits_scaling=4.0,
    ),
    "granite-moe-swa": _granite_swa(
        {"shared_intermediate_size": 0},
        "GraniteMoeSWAForCausalLM",
        num_local_experts=6,
        shared_intermediate_size=40,
    ),
    "granite-moe-swa-theta": _granite_swa(
        {"layer_rope_theta": None},
        "GraniteMoeSWAForCausalLM",
        num_local_experts=6,
        layer_rope_theta=[500_000.0, 0],
    ),
    "flex-olmo": _flex_olmo(),
    # The norm behind the experts would undo it, were its eps not as large.
    "flex-olmo-norm": _flex_olmo({"norm_topk_prob": False}, norm_topk_prob=True, rms_norm_eps=0.5),
    "glm4-moe-lite": _glm4_moe_lite(),
    "glm4-moe-lite-layers": _glm4_moe_lite(mlp_layer_types=["sparse", "dense"]),
    "glm4-moe-lite-knobs": _glm4_moe_lite(
        {"norm_topk_prob": True},
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        rope_interleave=False,
        attention_bias=True,
        q_lora_rank=None,
        n_group=3,
        topk_group=1,
    ),
    "exaone4": _exaone4({"sliding_window": WINDOW + 1}),
    "exaone4-layer-types": _exaone4({"layer_types": _KINDS}, layer_types=_KINDS[::-1]),
    "exaone4-no-window": _exaone4(
        {"sliding_window": WINDOW}, sliding_window=None, layer_types=["full_attention"] * 2
    ),
    "dots1": _dots1({"sliding_window": WINDOW + 1}, max_window_layers=1),
    "dots1-knobs": _dots1(
        {"norm_topk_prob": True},
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        attention_bias=True,
        n_group=3,
        topk_group=1,
        first_k_dense_replace=1,
    ),
    "minimax-m2": Case("MiniMaxM2ForCausalLM", {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "minimax-m2-partial-rotary-factor": Case(
        "MiniMaxM2ForCausalLM",
        {
            **{"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 24},
            "rope_parameters": _partial(0.5),
        },
        {"rope_parameters": _partial(1.0)},
    ),
    "solar-open": _solar_open(head_dim=24),
    "solar-open-knobs": _solar_open(
        {"norm_topk_prob": True},
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
        attention_bias=True,
        n_group=3,
        topk_group=1,
        n_shared_experts=2,
        head_dim=16,
    ),
    "apertus": Case("ApertusForCausalLM", {"rope_parameters": _partial(1.0)}),
    "apertus-act": _knob("ApertusForCausalLM", "hidden_act", "relu2", "silu"),
    "apertus-rope": _knob("ApertusForCausalLM", "rope_parameters", None, _partial(1.0)),
    "apertus-bias": _knob("ApertusForCausalLM", "attention_bias", True, False),
    "hunyuan-v1-dense": Case("HunYuanDenseV1ForCausalLM", {"head_dim": 24}),
    "hunyuan-v1-dense-alpha": _knob(
        "HunYuanDenseV1ForCausalLM",
        "rope_parameters",
        {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 50.0, "factor": 1.0},
        _partial(1.0),
        head_dim=16,
    ),
    "hunyuan-v1-dense-bias": _knob(
        "HunYuanDenseV1ForCausalLM", "attention_bias", True, False, head_dim=16
    ),
    "qwen3-next": _qwen3_next({"norm_topk_prob": False}, mlp_only_layers=[1]),
    "qwen3-next-interval": _qwen3_next(
        {"rope_parameters": _partial(1.0)},
        layer_types=None,
        full_attention_interval=2,
        decoder_sparse_step=2,
        linear_conv_kernel_dim=3,
        attention_bias=True,
        norm_topk_prob=False,
    ),
    "qwen3-5": Case(
        "Qwen3_5ForCausalLM",
        {
            **_DELTA_NET,
            "head_dim": 24,
            "rope_parameters": _partial(0.5)
            | {"mrope_section": [2, 2, 2], "mrope_interleaved": True},
        },
        {"hidden_act": "gelu"},
    ),
    "qwen3-5-moe": Case(
        "Qwen3_5MoeForCausalLM",
        _QWEN3_5_MOE,
    ),
    "olmo-hybrid": Case("OlmoHybridForCausalLM", {**_DELTA_NET, "rope_parameters": _partial(1.0)}),
    "olmo-hybrid-no-rope": Case(
        "OlmoHybridForCausalLM",
        {
            **_DELTA_NET,
            "rope_parameters": {"rope_type": "default", "rope_theta": None},
            "linear_allow_neg_eigval": False,
        },
        {"linear_allow_neg_eigval": True},
    ),
    "kimi-linear": _kimi_linear(),
    "kimi-linear-latent-queries": _kimi_linear(
        {"routed_scaling_factor": 1.0},
        q_lora_rank=24,
        attention_bias=True,
        mlp_layer_types=["sparse", "dense"],
        linear_conv_kernel_dim=3,
    ),
    "kimi-linear-groups": _kimi_linear(
        {"norm_topk_prob": True}, n_group=3, topk_group=2, norm_topk_prob=False
    ),
    "glm5-next": _glm5_next({"index_topk": 16}),
    "glm5-next-groups": _glm5_next(
        {"swiglu_limit": 10.0},
        **_GLM5_NEXT_SHORT,
        swiglu_limit=0.2,
        linear_lower_bound=None,
        index_topk=9,
        index_kpool=3,
        attention_bias=True,
        n_group=3,
        topk_group=2,
    ),
    "glm5-next-streams": _glm5_next(
        {"hc_sinkhorn_iters": 20},
        **_GLM5_NEXT_SHORT,
        hc_mult=3,
        hc_eps=0.1,
        hc_sinkhorn_iters=1,
        rms_norm_eps=0.1,
        linear_lower_bound=-0.5,
        index_kpool=1,
    ),
    "qwen4-exp": _qwen4_exp({"indexer_budget": 16}),
    "qwen4-exp-seeing": replace(
        _qwen4_exp(
            {"seed": 1},
            model_type="qwen4_exp_text",
            num_hidden_layers=3,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            rms_norm_eps=0.01,  # as small as usual, rounding moves the reference itself by 1e-4
            **{"hc_count": 3, "output_gate_type": "sigmoid", "norm_topk_prob": False},
            **{"ple_layer_ids": [2, 1], "ple_embed_dim": 48, "ple_conv_kernel_size": 3},
            **{"ngram_size": 4, "heads_per_ngram": 2, "eos_token_id": [75, 76]},
            **{"make_ngram_vocab_size_divisible_by": 50, "indexer_compress_ratio": 3},
            attention_bias=True,
            rope_parameters=_partial(0.5)
            | {"rope_type": "yarn", "factor": 8.0, "mrope_section": [2, 2, 2]}
            | {"original_max_position_embeddings": ORIGINAL_LENGTH},
        ),
        architecture="Qwen4ExpForConditionalGeneration",
        beside={
            "vision_config": {
                **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2},
                **{"patch_size": 4, "out_hidden_size": 64, "num_position_embeddings": 16},
            }
        },
    ),
    "minimax-m3": _minimax_m3({"index_topk_blocks": 4}),
    "minimax-m3-local": replace(
        _minimax_m3(
            {"index_local_blocks": 0},
            layer_types=["full_attention", "minimax_m3_sparse"],
            index_n_heads=1,
            index_block_size=4,
            index_local_blocks=2,
            swiglu_alpha=0.5,
            swiglu_limit=0.2,
            routed_scaling_factor=0.7,
        ),
        architecture="MiniMaxM3SparseForConditionalGeneration",
        beside={"vision_config": _SEEING["vision_config"], "projector_hidden_size": 16},
    ),
    "minimax": Case("MiniMaxForCausalLM", {"num_experts": 6}),
    "minimax-factors": Case(
        "MiniMaxForCausalLM",
        {
            **{"num_experts": 6, "head_dim": 24, "num_hidden_layers": 3, "hidden_act": "gelu"},
            **{"full_attn_alpha_factor": 1.5, "full_attn_beta_factor": 0.5},
            **{"linear_attn_alpha_factor": 2.0, "linear_attn_beta_factor": 0.25},
            **{"mlp_alpha_factor": 1.25, "mlp_beta_factor": 0.75},
        },
        {"linear_attn_beta_factor": 1},
    ),
    "minimax-window": Case(
        "MiniMaxForCausalLM",
        {"num_experts": 6, "sliding_window": WINDOW},
        {"sliding_window": None},
    ),
    "recurrent-gemma": Case(
        "RecurrentGemmaForCausalLM",
        {"num_hidden_layers": 3, "num_key_value_heads": 1, "attention_window_size": WINDOW},
        {"attention_window_size": WINDOW + 1},
    ),
    "recurrent-gemma-cap": Case(
        "RecurrentGemmaForCausalLM",
        {
            **{"block_types": ["attention", "recurrent"], "logits_soft_cap": 3.0},
            **{"attention_bias": True, "conv1d_width": 3, "hidden_size": 48, "lru_width": 96},
        },
        {"logits_soft_cap": 30.0},
    ),
    "granite-hybrid": _granite_hybrid(
        {"residual_multiplier": 1.0}, residual_multiplier=0.5, shared_intermediate_size=48
    ),
    "granite-hybrid-dense": _granite_hybrid(
        {"position_embedding_type": None},
        num_local_experts=0,
        position_embedding_type="rope",
        mamba_conv_bias=False,
        mamba_proj_bias=True,
        mamba_n_groups=1,
    ),
    "nemotron-h": Case("NemotronHForCausalLM", _NEMOTRON_H, {"mamba_hidden_act": "gelu"}),
    "nemotron-h-latent": Case(
        "NemotronHForCausalLM",
        {**_NEMOTRON_H, "moe_latent_size": 24, "mlp_hidden_act": "silu", "use_bias": True},
        {"mlp_hidden_act": "relu2"},
    ),
    "bamba": Case("BambaForCausalLM", {**_MAMBA2, "attn_layer_indices": [1]}),
    "falcon-h1": _falcon_h1(
        {"ssm_multipliers": [1.0] * 5},
        ssm_multipliers=[1.1, 0.9, 1.2, 0.8, 0.7],
        mlp_multipliers=[1.3, 0.9],
        key_multiplier=0.8,
        attention_in_multiplier=1.2,
        attention_out_multiplier=0.7,
        ssm_in_multiplier=1.1,
        ssm_out_multiplier=0.9,
        embedding_multiplier=1.4,
        lm_head_multiplier=0.6,
    ),
    "falcon-h1-norm": _falcon_h1(
        {"mamba_norm_before_gate": False}, mamba_rms_norm=True, projectors_bias=True
    ),
    "mamba": Case("MambaForCausalLM", {"intermediate_size": 96, "state_size": 8}),
    "falcon-mamba": Case(
        "FalconMambaForCausalLM", {"mixer_rms_eps": 0.1, "use_bias": True}, {"mixer_rms_eps": 1e-6}
    ),
    "mamba2": Case("Mamba2ForCausalLM", {"num_heads": 8, "head_dim": 16, "n_groups": 2}),
    "jamba": Case(
        "JambaForCausalLM",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 6, "mamba_dt_rank": 5},
    ),
    "lfm2": Case(
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16, "conv_bias": True},
    ),
    "lfm2-seeing": Case(
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        inside="Lfm2VlForConditionalGeneration",
    ),
    "lfm3": Case("Lfm3ForCausalLM", _LFM3, {"sliding_window": WINDOW + 1}),
    "lfm3-plain": Case(
        "Lfm3ForCausalLM",
        {
            **_LFM3,
            **_ropes(rope_theta=500.0),
            **{"use_attention_gate": False, "use_sandwich_norm": False, "conv_bias": True},
            **{"attention_bias": True, "conv_L_cache": 3, "tie_word_embeddings": False},
        },
        _PLAIN,
    ),
    "lfm2-moe": Case(
        "Lfm2MoeForCausalLM",
        {
            **_EXPERTS,
            "layer_types": ["conv", "full_attention"],
            "num_dense_layers": 1,
            "conv_L_cache": 4,
            "routed_scaling_factor": 1.5,
        },
        {"use_expert_bias": False},
    ),
    "qwen3-5-seeing": Case(
        "Qwen3_5ForCausalLM",
        {**_DELTA_NET, "head_dim": 24},
        inside="Qwen3_5ForConditionalGeneration",
    ),
    "qwen3-5-moe-seeing": Case(
        "Qwen3_5MoeForCausalLM",
        _QWEN3_5_MOE,
        inside="Qwen3_5MoeForConditionalGeneration",
    ),
    "cohere2-moe": _cohere2_moe({"sliding_window": WINDOW + 1}),
    "cohere2-moe-dense": _cohere2_moe(
        {"prefix_dense_sliding_window_pattern": 2},
        mlp_layer_types=["dense", "sparse"],
        layer_types=_KINDS[::-1],
        prefix_dense_intermediate_size=80,
    ),
    "cohere2-moe-shared": _cohere2_moe(
        {"shared_expert_combination_strategy": "sum"}, num_shared_experts=2, rms_norm_eps=1e-5
    ),
    "cohere2-moe-sigmoid": _cohere2_moe(
        {"norm_topk_prob": True},
        expert_selection_fn="sigmoid",
        norm_topk_prob=False,
        num_shared_experts=1,
        shared_expert_combination_strategy="sum",
        logit_scale=0.5,
    ),
    "ernie4-5-moe": _ernie4_5_moe(),
    "ernie4-5-moe-bias": _ernie4_5_moe(
        {"use_bias": False}, use_bias=True, tie_word_embeddings=False, moe_num_shared_experts=0
    ),
    "ernie4-5-moe-layers": _ernie4_5_moe(
        num_hidden_layers=4, moe_layer_start_index=0, moe_layer_end_index=2, moe_layer_interval=2
    ),
    "ernie4-5-moe-norm-min": _ernie4_5_moe({"moe_norm_min": 1e-12}, moe_norm_min=0.9),
    "gemma3n": _gemma3n({"sliding_window": WINDOW + 1}),
    "gemma3n-sparsity": _gemma3n(
        {"activation_sparsity_pattern": [0.0] * 4},
        activation_sparsity_pattern=[0.95, 0.5, 0.0, 0.9],
    ),
    "gemma3n-active-input": _gemma3n({"altup_active_idx": 0}, altup_active_idx=1),
    "gemma3n-inputs": _gemma3n(altup_num_inputs=2, num_kv_shared_layers=0),
    "gemma3n-unscaled": _gemma3n({"altup_correct_scale": True}, altup_correct_scale=False),
    "gemma3n-final-cap": _gemma3n({"final_logit_softcapping": 30.0}, final_logit_softcapping=3.0),
    "gemma3n-ropes": _gemma3n(_PLAIN, **_ropes(rope_theta=500.0)),
    "gemma3n-seeing": _gemma3n(inside="Gemma3nForConditionalGeneration"),
    "llama4": _llama4({"attention_chunk_size": WINDOW + 1}),
    "llama4-experts": _llama4(num_experts_per_tok=2, moe_layers=[0, 2]),
    "llama4-no-norm": _llama4({"use_qk_norm": True}, use_qk_norm=False, attention_bias=True),
    "llama4-no-tuning": _llama4({"attn_temperature_tuning": True}, attn_temperature_tuning=False),
    "llama4-layer-types": _llama4(
        {"layer_types": ["chunked_attention", "full_attention", "chunked_attention"]},
        layer_types=["full_attention", "chunked_attention", "chunked_attention"],
    ),
    "llama4-rope-interval": _llama4(
        {"no_rope_layer_interval": 2}, no_rope_layers=None, no_rope_layer_interval=3
    ),
    "llama4-seeing": _llama4(
        {"attn_scale": 0.1}, inside="Llama4ForConditionalGeneration", attn_scale=0.5
    ),
    "gemma4": _gemma4({"sliding_window": WINDOW + 1}),
    "gemma4-shared": _gemma4(num_kv_shared_layers=2, use_double_wide_mlp=True),
    "gemma4-keys-are-values": _gemma4(attention_k_eq_v=True, num_global_key_value_heads=1),
    "gemma4-no-layer-embeddings": _gemma4(hidden_size_per_layer_input=0),
    "gemma4-experts": _gemma4(
        enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=32
    ),
    "gemma4-final-cap": _gemma4({"final_logit_softcapping": None}, final_logit_softcapping=3.0),
    "gemma4-ropes": _gemma4(
        {"rope_parameters": None},
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.5,
                "rope_theta": 10_000.0,
                "factor": 2.0,
            },
        },
    ),
    "gemma4-seeing": Case(
        "Gemma4ForConditionalGeneration",
        {**_gemma4(num_kv_shared_layers=2).config, "pad_token_id": 0},
        {"sliding_window": WINDOW + 1},
        {"vision_config": None, "audio_config": None},
    ),
    "nanochat": Case(
        "NanoChatForCausalLM",
        {"final_logit_softcapping": 1.0},
        {"final_logit_softcapping": 15.0},
    ),
}


def build_tiny(case: str, **changes: Any) -> PreTrainedModel:
    """The row's model in float32, the same every time; `changes` are config fields.

    A parameter that several versions of a row have is the same in all of them.
    """
    row = CASES[case]
    config = {**TINY, **row.config, **changes}
    if row.beside:
        config = {"text_config": config, **row.beside}
    config_class = getattr(transformers, row.architecture).config_class
    model = build(config_class(**config, architectures=[row.architecture]))
    model.config._attn_implementation = row.attention
    return model


def save_tiny(case: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save the row's model as a Hugging Face folder."""
    return save(build_tiny(case).to(dtype), case, path)


def save(model: PreTrainedModel, case: str, path: Path) -> Path:
    """Save what `build_tiny` has made of a row."""
    model.save_pretrained(path)
    if inside := CASES[case].inside:
        store_inside(inside, path)
    return path


def store_inside(architecture: str, path: Path) -> None:
    """Store the text model at `path` as the text part of another."""
    text = json.loads((path / "config.json").read_text())
    config = {
        "architectures": [architecture],
        "model_type": getattr(transformers, architecture).config_class.model_type,
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
    (path / "config.json").write_text(json.dumps(config))
    tensors = load_file(path / "model.safetensors")
    save_file(
        {re.sub("^model", "model.language_model", name): t for name, t in tensors.items()}
        | {"model.vision_tower.x": torch.zeros(1)},
        path / "model.safetensors",
    )
