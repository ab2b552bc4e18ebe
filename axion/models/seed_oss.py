"""Seed-OSS (ByteDance, 2025): the bias of attention's output has a switch of its own."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig, Size


@dataclass(kw_only=True)
class SeedOssConfig(DecoderConfig):
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Length = 524288
    attention_bias: bool = True
    attention_out_bias: bool = False

    @property
    def output_bias(self) -> bool:
        return self.attention_out_bias


class SeedOssForCausalLM(CausalLM):
    architectures = ("SeedOssForCausalLM",)
    config_cls = SeedOssConfig
