"""Qwen3 (arXiv:2505.09388): queries and keys are normalised per head."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.base import CausalLM, HeadNormAttention
from axion.models.config import Size, SwitchedWindowConfig


@dataclass(kw_only=True)
class Qwen3Config(SwitchedWindowConfig):
    head_dim: Size | None = 128
    max_position_embeddings: Length = 32768


class Qwen3ForCausalLM(CausalLM):
    architectures = ("Qwen3ForCausalLM",)
    config_cls = Qwen3Config
    attention_cls = HeadNormAttention
