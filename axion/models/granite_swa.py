"""Granite with windows (IBM, 2026): every fourth layer attends to all tokens, from the first on;
attention has sinks, and each layer a rotary base of its own or none."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length, RopeParameters
from axion.models.config import Epsilon, Size, WindowConfig
from axion.models.granite import GraniteAttention, GraniteConfig, GraniteForCausalLM


@dataclass(kw_only=True)
class GraniteSWAConfig(GraniteConfig, WindowConfig):
    """
    Attributes:
        layer_rope_theta: the base of each layer; 0: its queries and keys are not rotated.
    """

    num_key_value_heads: Size | None = 4
    max_position_embeddings: Length = 8192
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    sliding_window: Size | None = 128
    layer_rope_theta: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_rope_theta is None:
            self.layer_rope_theta = [self.rope_parameters.rope_theta] * self.num_hidden_layers
        thetas = self.layer_rope_theta
        if len(thetas) != self.num_hidden_layers or min(thetas) < 0:
            raise ValueError("layer_rope_theta must have one number of at least 0 for each layer")

    def is_sliding(self, layer_idx: int) -> bool:
        return super().is_sliding(layer_idx) if self.layer_types is not None else layer_idx % 4 > 0

    def rope(self, layer_idx: int) -> RopeParameters:
        theta = self.layer_rope_theta[layer_idx]
        rope = super().rope(layer_idx)
        return replace(rope, rope_theta=theta) if theta else rope


class GraniteSWAAttention(GraniteAttention):
    def __init__(self, config: GraniteSWAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.has_rope = config.layer_rope_theta[layer_idx] > 0
        self.sinks = nn.Parameter(torch.empty(config.num_attention_heads), requires_grad=False)

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return super().rotate_qk(q, k, context) if self.has_rope else (q, k)


class GraniteSWAForCausalLM(GraniteForCausalLM):
    architectures = ("GraniteSWAForCausalLM",)
    config_cls = GraniteSWAConfig
    attention_cls = GraniteSWAAttention
