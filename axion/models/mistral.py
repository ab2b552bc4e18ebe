"""Mistral (arXiv:2310.06825): all layers attend to a window, or none does. Ministral: `layer_types`
says which. Ministral 3 (Mistral AI, 2025): queries grow beyond the original context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM, TextPart
from axion.models.config import DecoderConfig, Epsilon, Size, WindowConfig, text_config
from axion.models.mistral4 import Mistral4Config, Mistral4ForCausalLM


@dataclass(kw_only=True)
class MistralConfig(WindowConfig):
    """
    Attributes:
        llama_4_scaling_beta: how fast the queries grow; stands in `rope_parameters`.
    """

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 131072
    llama_4_scaling_beta: float = 0.0


class MistralForCausalLM(CausalLM):
    architectures = ("MistralForCausalLM", "MinistralForCausalLM")
    config_cls = MistralConfig


@dataclass(kw_only=True)
class Ministral3Config(MistralConfig):
    head_dim: Size | None = 128
    max_position_embeddings: Length = 262144
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = None

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        rope = config.get("rope_scaling") or config.get("rope_parameters") or _MINISTRAL3_ROPE
        rest = {name: value for name, value in rope.items() if name != "llama_4_scaling_beta"}
        derived, sources = super()._derive(config | {"rope_scaling": rest})
        return derived | {"llama_4_scaling_beta": rope.get("llama_4_scaling_beta", 0.0)}, sources


_MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


class Ministral3Attention(Attention):
    def __init__(self, config: MistralConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.beta = config.llama_4_scaling_beta
        self.original_length = config.rope_parameters.original_max_position_embeddings

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        q, k = super().rotate_qk(q, k, context)
        growth = 1 + self.beta * torch.log1p(context.positions // self.original_length)
        return q * growth[:, None, None].to(q.dtype), k


class Ministral3ForCausalLM(MistralForCausalLM):
    architectures = ("Ministral3ForCausalLM",)
    config_cls = Ministral3Config
    attention_cls = Ministral3Attention


_TEXT_CONFIGS = {"ministral3": Ministral3Config, "mistral4": Mistral4Config}


@dataclass(kw_only=True)
class Mistral3Config(MistralConfig):
    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> DecoderConfig:  # type: ignore[override]
        """Read the text part's configuration: a Mistral's, a Ministral 3's or a Mistral 4's."""
        text = text_config(config)
        return _TEXT_CONFIGS.get(text.get("model_type"), MistralConfig).from_dict(text)


class Mistral4TextPart(TextPart, Mistral4ForCausalLM):
    """Of a Mistral Small 4."""


class Mistral3ForConditionalGeneration(TextPart, Ministral3ForCausalLM):
    """Mistral Small 3.1 and later, and Ministral 3, without what they see with."""

    architectures = ("Mistral3ForConditionalGeneration",)
    renamed_tensors = (*TextPart.renamed_tensors, *Mistral4ForCausalLM.renamed_tensors)
    config_cls = Mistral3Config

    def __new__(cls, config: DecoderConfig) -> CausalLM:  # type: ignore[misc]
        """All have this name that see as Mistral Small 3.1 does, whatever reads and writes."""
        if isinstance(config, Mistral4Config):
            return Mistral4TextPart(config)
        return super().__new__(cls)
