"""What DeepSeek-V4 calls things in its own files, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from axion.engine.expected_tensors import expected_tensors
from axion.engine.kv_cache import lay_out
from axion.engine.loader import build_model, load_model
from axion.errors import ModelLoadError
from axion.models.deepseek_v4 import DeepseekV4Config, DeepseekV4ForCausalLM
from tests.parity.checkpoints import save_tiny

SIZES: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    **{"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"head_dim": 16, "q_lora_rank": 24, "n_routed_experts": 2, "num_experts_per_tok": 1},
    **{"moe_intermediate_size": 32, "o_lora_rank": 8, "o_groups": 2, "index_n_heads": 2},
}
YARN = {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rope_theta": 5e5, "compress_rope_theta": 4e4, "qk_rope_head_dim": 4},
        {"rope_scaling": YARN, "qk_rope_head_dim": 8},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "partial_rotary_factor": 0.25},
        {"compress_ratios": [0, 4, 128, 4, 0], "num_hash_layers": 1, "compress_rate_csa": 8},
        {"compress_rate_hca": 64, "num_hidden_layers": 7, "intermediate_size": 16},
    ],
    ids=str,
)
def test_older_fields_mean_what_they_mean_to_transformers(fields: dict[str, Any]) -> None:
    own = DeepseekV4Config.from_dict(SIZES | fields)
    written = transformers.DeepseekV4Config.from_dict(SIZES | fields).to_dict()
    assert own == DeepseekV4Config.from_dict(written)
    for name in ("layer_types", "mlp_layer_types", "compress_rates", "moe_intermediate_size"):
        assert getattr(own, name) == written[name], name
    for name, rope in (("main", own.rope_parameters), ("compress", own.compress_rope_parameters)):
        for field, value in written["rope_parameters"][name].items():
            assert field == "type" or getattr(rope, field) == value, field


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compress_ratios": [0, 4, 64, 4]}, "compress_ratios must be of 0, 4, 128"),
        ({"compress_rates": {"compressed_sparse_attention": 4}}, "compress_rates must be of"),
        ({"compress_rate_csa": 0}, "compress_rates"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types"),
        ({"layer_types": ["sliding_attention"]}, "layer_types must name 4 layers"),
        ({"mlp_layer_types": ["moe"] * 3}, "mlp_layer_types must name 4 layers"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"o_groups": 3}, "o_groups .3. must divide"),
        ({"partial_rotary_factor": 0.5, "index_head_dim": 4}, "index_head_dim .4."),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type=dynamic"),
        ({"rope_parameters": "yarn"}, "rope_parameters must be an object"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        DeepseekV4Config.from_dict(SIZES | fields)


def test_a_million_tokens_of_flash_take_less_than_ten_gib() -> None:
    config = {"architectures": SIZES["architectures"], "vocab_size": 129280, "hidden_size": 4096}
    config |= {"num_hidden_layers": 43, "num_attention_heads": 64}
    config |= {"compress_ratios": [0, 0, *[4, 128] * 20, 4]}
    model = build_model(config)  # the other sizes are the defaults
    assert model.can_rewind
    specs = [spec.in_pieces(16) for spec in model.kv_cache_specs()]
    layout = lay_out(specs, 2**20, block_size=16, max_chunk=2048, dtype=torch.bfloat16)
    num_bytes = layout.num_blocks_per_sequence * layout.bytes_per_block
    # 21 layers with 640 numbers for 4 tokens, and 20 with 512 for a block; the rest has windows.
    least = 2 * 2**20 * (21 * 640 // 4 + 20 * 512 // 16)
    assert least < num_bytes < 10 * 2**30


def test_the_names_of_the_release_are_known() -> None:
    """transformers saves all layers' tensors under them; these it does not."""
    expected = expected_tensors(build_model(SIZES))
    for name, own in {
        "embed.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
        "hc_head_fn": "model.hc_head.fn",
        "hc_head_scale": "model.hc_head.scale",
        "layers.0.attn.kv_norm.weight": "model.layers.0.self_attn.kv_norm.weight",
        "layers.3.attn.compressor.norm.weight": (
            "model.layers.3.self_attn.compressor.kv_norm.weight"
        ),
        "layers.3.attn.indexer.compressor.norm.weight": (
            "model.layers.3.self_attn.compressor.indexer.kv_norm.weight"
        ),
        "layers.3.hc_ffn_base": "model.layers.3.ffn_hc.base",
        "layers.3.ffn.gate.bias": "model.layers.3.mlp.gate.e_score_correction_bias",
    }.items():
        for pattern, replacement in DeepseekV4ForCausalLM.renamed_tensors:
            name = re.sub(pattern, replacement, name)
        assert name == own
        assert own in expected
    assert any(
        re.fullmatch(pattern, "mtp.0.attn.wq_a.weight")
        for pattern in DeepseekV4ForCausalLM.ignored_tensors
    )


@pytest.mark.parametrize("expert", [-1, 6])
def test_a_table_of_experts_that_do_not_exist_is_refused(expert: int, tmp_path: Path) -> None:
    file = save_tiny("deepseek-v4", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    [name] = [name for name in tensors if name.endswith(".tid2eid")]
    tensors[name][3, 1] = expert
    save_file(tensors, file)
    message = rf"tid2eid gives a token the expert {expert}, and experts .* from 0 to 5"
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path, device=torch.device("cpu"))
