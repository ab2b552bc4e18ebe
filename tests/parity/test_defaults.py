"""What config.json leaves out means what transformers takes it for."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from axion.errors import ModelLoadError
from axion.models.config import DecoderConfig
from axion.models.registry import model_classes
from axion.models.seeing import SeeingForConditionalGeneration

MODEL_TYPES = {
    name: model_type
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    if name in model_classes().keys() - {*SeeingForConditionalGeneration.architectures}
}
# transformers' own defaults of these describe no model: a number of experts is None, or of heads.
WITHOUT_DEFAULTS = {"DeepseekV2ForCausalLM", "Dots1ForCausalLM", "Qwen4ExpForCausalLM"}
# Read by no layer of latent attention; what `expand` says, too.
UNUSED = {
    # It is head_dim, which is written as something else.
    "BailingHybridForCausalLM": {"linear_head_dim"},
    "DeepseekV3ForCausalLM": {"head_dim"},
    "KimiLinearForCausalLM": {"head_dim"},
    "MambaForCausalLM": {"intermediate_size"},
    "FalconMambaForCausalLM": {"intermediate_size"},
}


@pytest.mark.parametrize("architecture", sorted(MODEL_TYPES.keys() - WITHOUT_DEFAULTS))
def test_a_field_that_is_left_out_has_transformers_default(architecture: str):
    config_cls = model_classes()[architecture].config_cls
    spelled_out = CONFIG_MAPPING[MODEL_TYPES[architecture]]().to_dict()
    expected = meaning(config_cls.from_dict(copy.deepcopy(spelled_out)))
    num_compared = 0
    for name in spelled_out.keys() - UNUSED.get(architecture, set()):
        rest = {key: value for key, value in spelled_out.items() if key != name}
        try:
            config = config_cls.from_dict(copy.deepcopy(rest))
        except ModelLoadError:  # it is required, and the message says so
            continue
        num_compared += 1
        assert meaning(config) == expected, name
    assert num_compared


def meaning(config: DecoderConfig) -> tuple[Any, ...]:
    """The fields, and what those that are only written differently say of each layer."""
    layers = range(config.num_hidden_layers)
    written = {"layer_types", "sliding_window"}
    return (
        {f.name: getattr(config, f.name) for f in fields(config) if f.name not in written},
        [config.window(i) for i in layers],
        [config.rope(i) for i in layers],
    )
