"""What reads and writes text in a model that also sees is a text model, and is served as one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import transformers

from axion.errors import ModelLoadError
from axion.models.llama import LlamaForCausalLM
from axion.models.registry import load_embedding_class, load_model_class
from axion.models.seeing import SAME
from axion.models.transformers_fallback import TransformersCausalLM

LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {"model_type": "clip_vision_model"},
}
QWEN2_VL: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
# What transformers' own defaults leave out, or do not fit.
SIZES: dict[str, dict[str, Any]] = {
    "deepseek_ocr2_text": {"n_routed_experts": 8, "num_experts_per_tok": 2},
    "mistral4": {"num_key_value_heads": 32},
}
# Of what they are the text parts, where their own name does not say it.
WHOLES = {
    "mistral4": "mistral3",
    "qwen2_5_omni_text": "qwen2_5_omni_thinker",
    "qwen3_omni_moe_text": "qwen3_omni_moe_thinker",
}


@pytest.mark.parametrize("model_type", SAME)
def test_a_text_model_like_another_is_read_without_a_word(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = transformers.CONFIG_MAPPING[WHOLES.get(model_type, model_type.removesuffix("_text"))]
    text = transformers.CONFIG_MAPPING[model_type](**SIZES.get(model_type, {}))
    config = whole(text_config=text).to_dict() | {"architectures": LLAVA["architectures"]}
    cls = load_model_class(config)
    assert SAME[model_type][0] in cls.__mro__[1].architectures
    cls.config_cls.from_dict(config)
    assert not [record for record in caplog.records if record.name.startswith("axion")]


def test_the_text_model_s_class_serves_it() -> None:
    assert issubclass(load_model_class(LLAVA), LlamaForCausalLM)
    assert issubclass(load_embedding_class(LLAVA), LlamaForCausalLM)


def test_what_config_json_leaves_out_is_what_transformers_takes_it_for() -> None:
    config = load_model_class(LLAVA).config_cls.from_dict(LLAVA)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32064, 4096, 11008)
    assert not config.tie_word_embeddings


def test_a_configuration_from_before_there_were_parts_is_read() -> None:
    config = load_model_class(QWEN2_VL).config_cls.from_dict(QWEN2_VL)
    assert (config.hidden_size, config.num_key_value_heads) == (32, 2)
    assert config.rope_parameters.rope_theta == 1e6
    assert config.tie_word_embeddings


def test_a_text_model_without_a_class_of_its_own_is_served_by_transformers() -> None:
    text = {"model_type": "biogpt"}
    cls = load_model_class(LLAVA | {"text_config": text})
    assert issubclass(cls, TransformersCausalLM)
    with pytest.raises(ModelLoadError, match="no embeddings"):
        load_embedding_class(LLAVA | {"text_config": text})


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"model_type": "nobody"}, "model_type 'nobody'"),
        ({"model_type": None}, "model_type"),
        ({"text_config": {"model_type": "llama", "num_hidden_layers": 2**20}}, "1048576 layers"),
        ({"text_config": {"model_type": "llama", "alibi": True}}, "alibi"),
    ],
)
def test_what_is_not_read_is_refused(fields: dict[str, Any], names: str) -> None:
    config = LLAVA | fields
    with pytest.raises(ModelLoadError, match=names):
        load_model_class(config).config_cls.from_dict(config)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("model.language_model.layers.0.x", "model.layers.0.x"),
        ("language_model.model.layers.0.x", "model.layers.0.x"),
        ("language_model.model.model.layers.0.x", "model.layers.0.x"),
        ("model.text_model.norm.weight", "model.norm.weight"),
        ("language_model.model.blocks.0.x", "model.layers.0.x"),
        ("model.layers.0.x", "model.layers.0.x"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("thinker.model.layers.0.x", "model.layers.0.x"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("visual.blocks.0.x", None),
        ("model.vision_tower.layers.0.x", None),
        ("model.image_newline", None),
        ("multi_modal_projector.linear_1.weight", None),
    ],
)
def test_the_text_model_s_tensors_are_found(stored: str, read: str | None) -> None:
    cls = load_model_class(LLAVA)
    name = stored
    for pattern, replacement in cls.renamed_tensors:
        name = re.sub(pattern, replacement, name)
    is_ignored = any(re.fullmatch(pattern, name) for pattern in cls.ignored_tensors)
    assert (None if is_ignored else name) == read
