"""ERNIE 4.5 (Baidu, 2025): neighbours are rotated as pairs, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.base import Attention, CausalLM
from axion.models.config import DecoderConfig, Epsilon, Size


@dataclass(kw_only=True)
class Ernie4_5Config(DecoderConfig):  # noqa: N801
    """`use_bias` is of attention and MLP alike."""

    default_rope_theta = 500_000.0

    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    tie_word_embeddings: bool = True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        bias = config.get("use_bias", False)
        return derived | {"attention_bias": bias, "mlp_bias": bias}, sources | {"use_bias"}


class Ernie4_5Attention(Attention):  # noqa: N801
    apply_rotary = staticmethod(apply_rotary_interleaved)

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(context, torch.float32)
        rotated = (self.apply_rotary(x.float(), cos, sin).to(x.dtype) for x in (q, k))
        return next(rotated), next(rotated)


class Ernie4_5ForCausalLM(CausalLM):  # noqa: N801
    architectures = ("Ernie4_5ForCausalLM",)
    config_cls = Ernie4_5Config
    attention_cls = Ernie4_5Attention
