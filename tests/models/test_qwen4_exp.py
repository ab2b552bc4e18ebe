"""What Qwen4-Exp's configuration says, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextNGramEmbedding

from axion.engine.expected_tensors import expected_tensors
from axion.engine.loader import build_model, load_model
from axion.errors import ModelLoadError
from axion.models.qwen4_exp import Qwen4ExpConfig
from axion.parity.tiny import random_prompts
from tests.parity.checkpoints import build_tiny, save_tiny

INDEXER = {
    **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 128},
    **{"indexer_budget": 2048, "indexer_compress_ratio": 4},
}
# As Qwen3.8-Flash-Next has them, but for the number of layers.
TEXT: dict[str, Any] = {
    **{"model_type": "qwen4_exp_text", "vocab_size": 248_320, "hidden_size": 2560},
    **{"num_hidden_layers": 4, "num_attention_heads": 24, "head_dim": 256},
    **{"layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    **{"linear_num_value_heads": 48, "moe_intermediate_size": 640},
    **{"shared_expert_intermediate_size": 640, "output_gate_type": "sigmoid"},
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        **{"mrope_section": [11, 11, 10], "mrope_interleaved": True},
    },
    **{"ple_layer_ids": [2], "split_ngram_parts": 128, "eos_token_id": 248_046, **INDEXER},
}


@pytest.fixture(scope="module")
def tiny() -> transformers.PreTrainedModel:
    return build_tiny("qwen4-exp-seeing")


def test_the_release_is_what_transformers_makes_of_it() -> None:
    model = build_model(
        {
            **{"architectures": ["Qwen4ExpForConditionalGeneration"], "model_type": "qwen4_exp"},
            **{"text_config": TEXT, "vision_config": {}},
        }
    )
    with torch.device("meta"):
        theirs = Qwen4ExpTextNGramEmbedding(transformers.Qwen4ExpTextConfig(**TEXT), 2560, 1)
    own = model.model.layers[1].ple.ple_embedding
    assert own.ngram_embedding.weight.shape == theirs.ngram_embedding.weight.shape
    prefix = "model.layers.1.ple.ple_embedding.ngram_embedding.shard_"
    assert sum(name.startswith(prefix) for name in expected_tensors(model)) == 128
    assert model.attends_to_all_of(2048)
    assert not model.attends_to_all_of(2049)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("indexer_compress_ratio", 2),
        ("norm_topk_prob", True),
        ("eos_token_id", [76, 75]),
        ("output_gate_type", None),
        ("rms_norm_eps", 1e-6),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
    ],
)
def test_the_reference_moves_with_every_field(
    tiny: transformers.PreTrainedModel, field: str, value: Any
) -> None:
    """Of the row that `test_parity` compares with all of them."""
    prompt = torch.tensor([random_prompts()[1]])
    with torch.inference_mode():
        moved = (
            tiny(prompt).logits - build_tiny("qwen4-exp-seeing", **{field: value})(prompt).logits
        )
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"indexer_budget": None}, "indexer_budget is missing"),
        ({"indexer_budget": 2047}, "must be a multiple of indexer_compress_ratio"),
        ({"indexer_kv_heads": 2}, "indexer_kv_heads"),
        ({"indexer_head_dim": 32}, "indexer_head_dim .32. must not be below .* .64."),
        ({"output_gate_type": "tanh"}, "output_gate_type"),
        ({"output_gate_type": None, "hidden_act": "gelu"}, "output_gate_type is missing"),
        ({"ple_layer_ids": [4]}, "must be of the layers with linear attention"),
        ({"ple_layer_ids": [0]}, "must be of the layers with linear attention"),
        ({"eos_token_id": None}, "eos_token_id is missing"),
        ({"eos_token_id": []}, "eos_token_id is missing"),
        ({"ngram_size": 1}, "ngram_size must be 2 at least"),
        ({"ple_embed_dim": 100}, "ple_embed_dim .100. must be a multiple"),
        ({"heads_per_ngram": 640, "ple_embed_dim": 1280}, "more than 1024 heads"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type=dynamic"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Qwen4ExpConfig.from_dict(TEXT | fields)


def test_layers_that_choose_nothing_need_no_indexer() -> None:
    fields = TEXT | dict.fromkeys(INDEXER) | {"layer_types": ["linear_attention"] * 4}
    assert Qwen4ExpConfig.from_dict(fields).indexer_budget is None


@pytest.mark.parametrize(
    ("table", "value"),
    [("vocab_sizes", 0), ("offsets", -1), ("vocab_sizes", 2**63 - 1), ("offsets", 10_000)],
)
def test_hashes_that_lie_outside_the_embedding_are_refused(
    table: str, value: int, tmp_path: Path
) -> None:
    file = save_tiny("qwen4-exp", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors[f"model.layers.0.ple.ple_embedding.ngram_heads_{table}"][3] = value
    save_file(tensors, file)
    with pytest.raises(ModelLoadError, match=r"do not fit the embedding's \d+ rows"):
        load_model(tmp_path, device=torch.device("cpu"))
