"""Every field of config.json is honoured, known to be harmless, refused, or at least named."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import transformers
from transformers import LlamaConfig

from axion.errors import ModelLoadError
from axion.models.config import DecoderConfig
from axion.models.gemma import GemmaConfig
from axion.models.gemma2 import Gemma2Config
from axion.models.gemma3 import Gemma3TextConfig
from axion.models.registry import model_classes
from axion.models.seeing import SeeingForConditionalGeneration

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def read(**fields: Any) -> DecoderConfig:
    return DecoderConfig.from_dict(CONFIG | fields)


def test_defaults_are_those_of_transformers(caplog: pytest.LogCaptureFixture) -> None:
    config, expected = read(), LlamaConfig.from_dict(CONFIG)
    for name in ("head_dim", "num_key_value_heads", "hidden_act", "rms_norm_eps", "mlp_bias"):
        assert getattr(config, name) == getattr(expected, name), name
    for name in ("max_position_embeddings", "attention_bias", "tie_word_embeddings"):
        assert getattr(config, name) == getattr(expected, name), name
    assert config.rope_parameters.rope_theta == expected.rope_parameters["rope_theta"]
    assert not caplog.records


# Of models that also see, transformers itself reads the configuration: see test_seeing.
FAMILIES = sorted(
    name
    for name in model_classes().keys() - {*SeeingForConditionalGeneration.architectures}
    if hasattr(transformers, name)
)
# What transformers' own defaults leave out, or do not fit.
_NEEDED = {
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 6},
    "BloomForCausalLM": {"intermediate_size": 8192},
    "DeepseekV3ForCausalLM": {"num_key_value_heads": 32},
    "DeepseekV32ForCausalLM": {"num_key_value_heads": 32},
    "Dots1ForCausalLM": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "Dots3NoteForCausalLM": {"num_key_value_heads": 32},
    "GPTNeoForCausalLM": {"num_hidden_layers": 24},
    "Gemma3nForCausalLM": {"num_kv_shared_layers": 0},
    "Glm5NextForConditionalGeneration": {"num_key_value_heads": 32},
    "Glm4MoeLiteForCausalLM": {"num_key_value_heads": 32},
    "GlmMoeDsaForCausalLM": {"num_key_value_heads": 32},
    "HeliumForCausalLM": {"num_key_value_heads": 32},
    "Mamba2ForCausalLM": {"num_heads": 64},
    "MistralLarge4ForConditionalGeneration": {"num_key_value_heads": 32},
    "GPTNeoXJapaneseForCausalLM": {"intermediate_size": 8192},
    "MptForCausalLM": {"intermediate_size": 8192},
    "OpenAIGPTLMHeadModel": {"intermediate_size": 8192},
    "Qwen4ExpForCausalLM": {
        **{"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 256},
        **{"indexer_budget": 2048, "indexer_compress_ratio": 4},
    },
    "Zamba2ForCausalLM": {
        "num_hidden_layers": 2,
        "layers_block_type": ["linear_attention", "hybrid"],
    },
}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_defaults_of_a_family_are_those_of_transformers(architecture: str) -> None:
    fields = CONFIG | {"hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 40}
    fields |= _NEEDED.get(architecture, {})
    config_class = getattr(transformers, architecture).config_class
    if "text_config" in config_class.sub_configs:
        fields = {"text_config": fields, "vision_config": {}}
    config = model_classes()[architecture].config_cls.from_dict(fields)
    whole = config_class.from_dict(fields)
    expected = whole.get_text_config()
    expected.tie_word_embeddings = whole.tie_word_embeddings
    written = expected.to_dict()  # also of what Gemma 4 has for each layer
    for field in dataclasses.fields(config):
        name = field.name
        value = written[name] if name in written else getattr(expected, name, None)
        if field.name == "sliding_window":
            value = value or None  # Qwen2Moe writes that it has none as 0
        if field.name not in ("rope_parameters", "layer_types") and value is not None:
            assert getattr(config, field.name) == value, field.name
    for i, kind in enumerate(getattr(expected, "layer_types", None) or ()):
        is_sliding = kind == "sliding_attention" or "compressed" in kind  # beside a window
        assert config.window(i) == (expected.sliding_window if is_sliding else None)
    rope = {"partial_rotary_factor": 1.0, **(getattr(expected, "rope_parameters", None) or {})}
    if "rope_theta" in rope:  # neither learned positions nor a rope for each kind of layer
        assert config.rope_parameters.rope_theta == rope["rope_theta"]
        assert config.rope_parameters.partial_rotary_factor == rope["partial_rotary_factor"]


_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("Gemma3ForCausalLM", {"rope_theta": 5e5, "rope_local_base_freq": 5e3}),
        ("Gemma3ForCausalLM", {"rope_theta": 5e5}),
        ("Gemma3ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ("Gemma3ForCausalLM", {"sliding_window": 512, "sliding_window_pattern": 3}),
        ("Olmo3ForCausalLM", {"rope_theta": 5e5, "rope_scaling": _YARN}),
    ],
)
def test_windows_and_ropes_of_older_checkpoints(architecture: str, fields: dict[str, Any]) -> None:
    fields = CONFIG | {"num_hidden_layers": 12} | fields
    config = model_classes()[architecture].config_cls.from_dict(dict(fields))
    expected = getattr(transformers, architecture).config_class.from_dict(dict(fields))
    for i, kind in enumerate(expected.layer_types):
        is_sliding = kind == "sliding_attention" or "compressed" in kind  # beside a window
        assert config.window(i) == (expected.sliding_window if is_sliding else None)
        for name, value in expected.rope_parameters[kind].items():
            assert getattr(config.rope(i), name) == value, name


def test_an_older_gemma_means_the_approximation_by_gelu() -> None:
    config = CONFIG | {"hidden_act": "gelu", "num_key_value_heads": 2}
    assert GemmaConfig.from_dict(config).hidden_act == "gelu_pytorch_tanh"
    exact = CONFIG | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu"}
    assert Gemma2Config.from_dict(exact).hidden_act == "gelu"


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"rope_parameters": {"rope_type": "default"}}, "full_attention and sliding_attention"),
        ({"layer_types": ["full_attention"]}, "layer_types must name 2 layers, not 1"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
    ],
)
def test_gemma_3_refuses_what_it_does_not_compute(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(ModelLoadError, match=names):
        Gemma3TextConfig.from_dict(CONFIG | fields)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_transformers_writes_of_a_family_is_read_without_a_word(
    architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    config_class = getattr(transformers, architecture).config_class
    fields = CONFIG | {"hidden_size": 2048, "num_attention_heads": 32}
    written = config_class(**fields | _NEEDED.get(architecture, {})).to_dict()
    model_classes()[architecture].config_cls.from_dict(written)
    assert not [record for record in caplog.records if record.name.startswith("axion")]


def test_what_transformers_writes_is_read_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    written = LlamaConfig(**CONFIG, head_dim=16, num_key_value_heads=2).to_dict()
    config = DecoderConfig.from_dict(written)
    assert (config.head_dim, config.num_key_value_heads) == (16, 2)
    assert not caplog.records


def test_what_older_checkpoints_carry_is_read_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    read(
        _name_or_path="x",
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=[2, 3],
        initializer_range=0.02,
        pretraining_tp=2,
        rope_scaling=None,
        rope_theta=10000.0,
        torch_dtype="bfloat16",
        transformers_version="4.31.0",
        use_cache=True,
        sliding_window=None,
        quantization_config=None,
    )
    assert not caplog.records


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": 128},
        {"attn_logit_softcapping": 50.0},
        {"logits_scaling": 8.0},
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"num_local_experts": 8},
        {"clip_qkv": 8.0},
        {"no_rope_layers": [1, 0]},
        {"rope_scaling": {"type": "mrope"}},
        {"add_cross_attention": True},
    ],
)
def test_a_field_that_changes_the_maths_is_refused_by_name(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ModelLoadError, match="mrope" if name == "rope_scaling" else name):
        read(**fields)


def test_a_family_that_declares_such_a_field_honours_it() -> None:
    from dataclasses import dataclass

    @dataclass(kw_only=True)
    class WindowConfig(DecoderConfig):
        sliding_window: int | None = None

    assert WindowConfig.from_dict(CONFIG | {"sliding_window": 128}).sliding_window == 128


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": None},
        {"layer_types": ["full_attention", "full_attention"]},
        {"logits_scaling": 1.0},
        {"num_local_experts": 0},
    ],
)
def test_its_neutral_value_is_not(fields: dict[str, Any]) -> None:
    read(**fields)


def test_an_unknown_field_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "axion.models"):
        read(flux_capacitor=1.21)
    assert "flux_capacitor" in caplog.text


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": -32}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": 2**63}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 64}, "head_dim"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_scaling": 3}, "rope_parameters"),
        ({"layer_types": 7}, "layer_types"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(ModelLoadError, match=names):
        read(**fields)


@pytest.mark.parametrize("name", [name for name in CONFIG if name != "architectures"])
def test_a_missing_size_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelLoadError, match=name):
        DecoderConfig.from_dict({key: value for key, value in CONFIG.items() if key != name})
