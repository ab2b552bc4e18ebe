"""Mistral (arXiv:2310.06825): all layers attend to a window, or none does. Ministral: `layer_types`
says which. Ministral 3 (Mistral AI, 2025): queries grow beyond the original context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM
from axion.models.config import Epsilon, Size, WindowConfig


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
