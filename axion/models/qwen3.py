"""Qwen3 (arXiv:2505.09388): queries and keys are normalised per head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from axion.layers.norm import RMSNorm
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM
from axion.models.config import Size, SwitchedWindowConfig


@dataclass(kw_only=True)
class Qwen3Config(SwitchedWindowConfig):
    head_dim: Size | None = 128
    max_position_embeddings: Length = 32768


class Qwen3Attention(Attention):
    def __init__(self, config: Qwen3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Qwen3ForCausalLM(CausalLM):
    architectures = ("Qwen3ForCausalLM",)
    config_cls = Qwen3Config
    attention_cls = Qwen3Attention
