"""Mixtures of experts load from every form that checkpoints have, and refuse what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from axion.engine.loader import load_model
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.models.deepseek_v2 import DeepseekV2Config
from axion.models.deepseek_v3 import DeepseekV3Config
from axion.models.moe import MoEConfig
from axion.models.qwen2_moe import Qwen2MoeBaseConfig
from tests.parity.checkpoints import build_tiny, save_tiny

WEIGHTS = "model.safetensors"


def load(path: Path, dtype: str = "float32") -> CausalLM:
    return load_model(path, device=torch.device("cpu"), dtype=dtype)


def stored_names(path: Path) -> set[str]:
    with safe_open(path / WEIGHTS, framework="pt") as tensors:
        return set(tensors.keys())


@pytest.mark.parametrize("case", ["mixtral", "qwen2-moe", "deepseek-v3", "granite-moe-shared"])
def test_experts_stored_stacked_are_those_stored_alone(case: str, tmp_path: Path) -> None:
    alone, stacked = tmp_path / "alone", tmp_path / "stacked"
    save_tiny(case, alone)
    build_tiny(case).save_pretrained(stacked, save_original_format=False)
    assert stored_names(alone) != stored_names(stacked)
    expected = load(alone).state_dict()
    loaded = load(stacked).state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp\.experts\.2\.up_proj\.weight is mis"):
        load(tmp_path)


def test_the_correction_bias_keeps_float32(tmp_path: Path) -> None:
    save_tiny("deepseek-v3", tmp_path)
    gate = load(tmp_path, "bfloat16").model.layers[1].mlp.gate
    expected = build_tiny("deepseek-v3").model.layers[1].mlp.gate
    assert gate.weight.dtype == torch.bfloat16
    assert torch.equal(gate.e_score_correction_bias, expected.e_score_correction_bias)


@pytest.mark.parametrize("case", ["glm4-moe", "deepseek-v3"])
def test_layers_that_guess_more_tokens_are_left_out(case: str, tmp_path: Path) -> None:
    save_tiny(case, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["model.layers.2.eh_proj.weight"] = torch.zeros(3)
    save_file(tensors, tmp_path / WEIGHTS)
    load(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"num_nextn_predict_layers": 0}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="eh_proj"):
        load(tmp_path)


def test_the_cache_of_latent_attention_holds_the_latent_and_one_key(tmp_path: Path) -> None:
    save_tiny("deepseek-v3", tmp_path)
    config = load(tmp_path).config
    for spec in load(tmp_path).kv_cache_specs():
        assert spec.num_elements == config.kv_lora_rank + config.qk_rope_head_dim


BASE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
}
DEEPSEEK: dict[str, Any] = BASE | {
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_the_number_of_experts_has_three_names(name: str) -> None:
    assert MoEConfig.from_dict(BASE | {name: 6}).num_experts == 6


def test_two_numbers_of_experts_are_refused() -> None:
    with pytest.raises(ModelLoadError, match="num_experts and num_local_experts"):
        MoEConfig.from_dict(BASE | {"num_experts": 6, "num_local_experts": 8})


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"mlp_only_layers": [1, 2]}, [0, 3]),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1]),
    ],
)
def test_which_layers_have_experts(fields: dict[str, Any], layers: list[int]) -> None:
    sizes = {"num_hidden_layers": 4, "num_experts": 4, "moe_intermediate_size": 16}
    config = Qwen2MoeBaseConfig.from_dict(BASE | sizes | fields)
    assert [layer for layer in range(4) if config.is_sparse(layer)] == layers


@pytest.mark.parametrize(
    ("config_cls", "fields", "named"),
    [
        (DeepseekV2Config, {"norm_topk_prob": True}, "norm_topk_prob"),
        (DeepseekV2Config, {"topk_method": "noaux_tc"}, "topk_method"),
        (DeepseekV2Config, {"scoring_func": "sigmoid"}, "scoring_func"),
        (DeepseekV2Config, {"moe_layer_freq": 2}, "moe_layer_freq"),
        (DeepseekV2Config, {"num_key_value_heads": 2}, "num_key_value_heads"),
        (DeepseekV3Config, {"scoring_func": "softmax"}, "scoring_func"),
        (DeepseekV3Config, {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        (DeepseekV3Config, {"n_group": 3}, "n_group"),
        (DeepseekV3Config, {"n_group": 4, "topk_group": 5}, "topk_group"),
        (DeepseekV3Config, {"n_group": 8, "topk_group": 4}, "n_group"),
        (
            DeepseekV3Config,
            {"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3},
            "num_experts_per_tok",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_name(
    config_cls: type[MoEConfig], fields: dict[str, Any], named: str
) -> None:
    config_cls.from_dict(DEEPSEEK)
    with pytest.raises(ModelLoadError, match=named):
        config_cls.from_dict(DEEPSEEK | fields)
