"""Helium (Kyutai, 2025): neighbours are rotated as pairs; norms are weighted in float32."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.norm import Float32RMSNorm
from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.base import Attention, CausalLM
from axion.models.config import DecoderConfig, Epsilon, Size


@dataclass(kw_only=True)
class HeliumConfig(DecoderConfig):
    default_rope_theta = 100_000.0

    num_key_value_heads: Size | None = 20
    head_dim: Size | None = 128
    max_position_embeddings: Length = 4096
    rms_norm_eps: Epsilon = 1e-8

    @property
    def output_bias(self) -> bool:
        return False

    def norm(self) -> Float32RMSNorm:
        return Float32RMSNorm(self.hidden_size, self.rms_norm_eps)


class HeliumAttention(Attention):
    apply_rotary = staticmethod(apply_rotary_interleaved)


class HeliumForCausalLM(CausalLM):
    architectures = ("HeliumForCausalLM",)
    config_cls = HeliumConfig
    attention_cls = HeliumAttention
