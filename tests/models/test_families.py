"""What the families call things in older config.json files, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import transformers

from axion.errors import ModelLoadError
from axion.models.config import DecoderConfig
from axion.models.registry import model_classes

GLM5_NEXT = "Glm5NextForConditionalGeneration"
SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT_SIZES = {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4}
MINIMAX_M3 = "MiniMaxM3VLForCausalLM"
STEP = "Step3p5ForCausalLM"
_SPARSE = {"layer_types": 2 * ["minimax_m3_sparse"]}
_KV_HEADS = {"num_key_value_heads": 4}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def read(architecture: str, config: dict[str, Any]) -> DecoderConfig:
    return model_classes()[architecture].config_cls.from_dict(config)


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("PhiForCausalLM", {"partial_rotary_factor": 0.25, "rope_theta": 5e5}),
        ("StableLmForCausalLM", {"partial_rotary_factor": 0.5}),
        ("GPTNeoXForCausalLM", {"rotary_pct": 0.5, "rotary_emb_base": 5e5}),
        ("GlmForCausalLM", {"partial_rotary_factor": 1.0}),
        ("Phi3ForCausalLM", {"rope_scaling": {"type": "yarn", **FACTORS}}),
        (
            "Phi3ForCausalLM",
            {
                "rope_scaling": {"type": "longrope", **FACTORS},
                "original_max_position_embeddings": 64,
                "max_position_embeddings": 256,
            },
        ),
    ],
)
def test_older_names_of_a_rope_mean_what_they_mean_to_transformers(
    architecture: str, fields: dict[str, Any]
) -> None:
    config = read(architecture, SIZES | fields)
    config_class = getattr(transformers, architecture).config_class
    for name, value in config_class.from_dict(SIZES | fields).rope_parameters.items():
        expected = tuple(value) if isinstance(value, list) else value
        if name != "type":
            assert getattr(config.rope_parameters, name) == expected, name


def test_su_is_what_longrope_was_called() -> None:
    new, old = (
        read("Phi3ForCausalLM", SIZES | {"rope_scaling": {"type": name, **FACTORS}})
        for name in ("longrope", "su")
    )
    assert new.rope_parameters.rope_type == "longrope"
    assert old == new


@pytest.mark.parametrize(
    ("architecture", "fields"), [("GPT2LMHeadModel", {}), ("GPTJForCausalLM", {"rotary_dim": 16})]
)
def test_sizes_under_the_names_of_gpt(architecture: str, fields: dict[str, Any]) -> None:
    config = read(architecture, {**GPT_SIZES, "n_inner": None, **fields})
    assert (config.hidden_size, config.intermediate_size) == (64, 256)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 4)


def test_rotary_dim_survives_that_it_becomes_a_share_of_the_head() -> None:
    for head_dim in (100, 200):
        for rotary_dim in range(2, head_dim + 1, 2):
            sizes = GPT_SIZES | {"n_embd": head_dim * 4, "rotary_dim": rotary_dim}
            factor = read("GPTJForCausalLM", sizes).rope_parameters.partial_rotary_factor
            assert int(head_dim * factor) == rotary_dim


@pytest.mark.parametrize(
    ("architecture", "fields", "named"),
    [
        ("FalconForCausalLM", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        (
            "FalconForCausalLM",
            {"new_decoder_architecture": True, "parallel_attn": False},
            "parallel_attn",
        ),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("GPTJForCausalLM", {"rotary_dim": 32}, "rotary_dim"),
        ("GPTJForCausalLM", {"rotary_dim": None}, "rotary_dim"),
        ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention"),
        ("OlmoForCausalLM", {"clip_qkv": "8"}, "clip_qkv"),
        (GLM5_NEXT, {"index_kpool_always_select_tail": False}, "index_kpool_always_select_tail"),
        (
            GLM5_NEXT,
            _KV_HEADS | {"index_topk": 100},
            r"index_topk \(100\) must be a multiple of index_kpool",
        ),
        (GLM5_NEXT, {"qk_rope_head_dim": 8}, "qk_rope_head_dim"),
        (GLM5_NEXT, {"layer_types": 2 * ["sliding_attention"]}, "layer_types"),
        (GLM5_NEXT, {"layer_types": None, "linear_attn_config": {"rank": 8}}, "linear_attn_config"),
        (
            GLM5_NEXT,
            _KV_HEADS
            | {"indexer_types": ["shared", "full"], "layer_types": ["full_attention"] * 2},
            "indexer_types",
        ),
        (GLM5_NEXT, {"swiglu_limit": 0}, "swiglu_limit"),
        (MINIMAX_M3, _SPARSE | {"index_n_heads": 3}, r"index_n_heads \(3\) must divide"),
        (MINIMAX_M3, _SPARSE | {"index_local_blocks": 17}, "index_local_blocks"),
        (MINIMAX_M3, _SPARSE | {"index_head_dim": 64}, "index_head_dim"),
        (MINIMAX_M3, {"layer_types": ["minimax_m3_sparse"]}, "layer_types"),
        (MINIMAX_M3, {"sparse_attention_config": 5}, "sparse_attention_config"),
        (MINIMAX_M3, {"moe_layer_freq": 1}, "moe_layer_freq must be a list"),
        ("AfmoeForCausalLM", {"num_experts": 8, "route_norm": False}, "norm_topk_prob"),
        (STEP, {"sink": True}, "sink"),
        (STEP, {"norm_expert_weight": False}, "norm_expert_weight"),
        (STEP, {"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config"),
        (STEP, {"per_layer_config": {"1": 5}}, "per_layer_config|suit"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    architecture: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelLoadError, match=named):
        read(architecture, SIZES | fields)


def test_step_reads_what_checkpoints_write() -> None:
    """Lists for each layer, those behind the last included."""
    config = read(
        STEP,
        SIZES
        | {
            **{"num_attention_groups": 2, "head_dim": 16, "num_nextn_predict_layers": 1},
            **{"layer_types": ["full_attention", *["sliding_attention"] * 2]},
            **{"attention_other_setting": {"num_attention_heads": 6, "num_attention_groups": 2}},
            **{"rope_theta": [5e6, 1e4, 1e4], "partial_rotary_factors": [0.5, 1.0, 1.0]},
            **{"moe_layers_enum": "1", "moe_num_experts": 8, "moe_top_k": 2, "sliding_window": 8},
            **{"swiglu_limits": [0.0, 7.0, 0.0], "yarn_only_types": ["full_attention"]},
            **{"use_qk_norm": True, "use_head_wise_attn_gate": True, "sink": False},
        },
    )
    assert [config.of_layer(i).num_attention_heads for i in range(2)] == [4, 6]
    assert [config.window(i) for i in range(2)] == [None, 8]
    assert [config.rope(i).rope_theta for i in range(2)] == [5e6, 1e4]
    assert [config.rope(i).partial_rotary_factor for i in range(2)] == [0.5, 1.0]
    assert [config.is_sparse(i) for i in range(2)] == [False, True]
    assert (config.num_experts, config.num_experts_per_tok, config.swiglu_limits) == (8, 2, [0, 7])
    assert (config.query_pre_attn_scalar, config.num_key_value_heads) == (16, 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"linear_lower_bound": None},
        {"linear_attn_config": {"head_dim": 32, "num_heads": 3, "short_conv_kernel_size": 3}},
        {"linear_attn_config": {"gate_lower_bound": -2.0}},
        {"linear_attn_config": {"gate_lower_bound": None}},
        {"linear_attn_config": {"gate_lower_bound": None, "safe_gate": False}},
        {"linear_attn_config": {"safe_gate": True}, "linear_lower_bound": None},
        {"layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"]},
        {"index_topk_pattern": "SFSF", "layer_types": 2 * ["linear_attention", "full_attention"]},
        {"index_topk_freq": 4, "index_skip_topk_offset": 4},
    ],
)
def test_glm_5_next_reads_what_checkpoints_may_write(fields: dict[str, Any]) -> None:
    fields = SIZES | {"num_hidden_layers": 4, "num_key_value_heads": 4} | fields
    config_class = getattr(transformers, GLM5_NEXT).config_class
    expected = config_class.from_dict({"text_config": copy.deepcopy(fields)}).text_config

    inside = read(GLM5_NEXT, {"text_config": copy.deepcopy(fields), "vision_config": {}})
    beside = read(GLM5_NEXT, fields | {"vision_config": {}, "image_token_id": 5})

    assert inside == beside
    for ours, theirs in {
        "linear_key_head_dim": "linear_head_dim",
        "linear_num_value_heads": "linear_num_heads",
        **{
            name: name
            for name in (
                *("linear_conv_kernel_dim", "linear_lower_bound", "layer_types"),
                *("indexer_types", "mlp_layer_types"),
            )
        },
    }.items():
        assert getattr(inside, ours) == getattr(expected, theirs), theirs


def test_minimax_m3_reads_what_checkpoints_write() -> None:
    fields = SIZES | {
        "hidden_act": "swigluoai",
        "sparse_attention_config": {
            "sparse_num_index_heads": 2,
            "sparse_index_dim": 96,
            "sparse_block_size": 64,
            "sparse_topk_blocks": 8,
            "sparse_local_block": 2,
            "sparse_attention_freq": [0, 1],
        },
        "moe_layer_freq": [0, 1],
        "partial_rotary_factor": 0.5,
    }
    expected = getattr(transformers, MINIMAX_M3).config_class.from_dict(copy.deepcopy(fields))

    config = read(MINIMAX_M3, fields)

    for name in (
        *("index_n_heads", "index_head_dim", "index_block_size", "index_topk_blocks"),
        *("index_local_blocks", "layer_types", "mlp_layer_types", "hidden_act"),
    ):
        assert getattr(config, name) == getattr(expected, name), name
