"""What the families call things in older config.json files, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from axion.errors import ModelLoadError
from axion.models.config import DecoderConfig
from axion.models.registry import model_classes

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT_SIZES = {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 4}
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
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    architecture: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ModelLoadError, match=named):
        read(architecture, SIZES | fields)
