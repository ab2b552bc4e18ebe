"""Command R (Cohere, 2024): attention and MLP beside each other, neighbours rotated as pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.norm import LayerNorm
from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.base import Attention, CausalLM, ParallelDecoderLayer
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class CohereConfig(DecoderConfig):
    default_rope_theta = 500_000.0

    max_position_embeddings: Length = 8192
    layer_norm_eps: Epsilon = 1e-5
    logit_scale: float = 0.0625
    use_qk_norm: bool = False
    tie_word_embeddings: bool = True

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.layer_norm_eps, bias=False)


class HeadNorm(nn.Module):
    """Layer norm over each head of `[num_tokens, num_heads, head_dim]`, with weights of its own."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normalized = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (self.weight.float() * normalized).to(x.dtype)


class CohereAttention(Attention):
    apply_rotary = staticmethod(apply_rotary_interleaved)

    def __init__(self, config: CohereConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm, self.k_norm = (
            HeadNorm(num_heads, config.head_dim, config.layer_norm_eps)
            if config.use_qk_norm
            else nn.Identity()
            for num_heads in (config.num_attention_heads, config.num_key_value_heads)
        )

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class CohereForCausalLM(CausalLM):
    architectures = ("CohereForCausalLM",)
    config_cls = CohereConfig
    attention_cls = CohereAttention
    layer_cls = ParallelDecoderLayer
    config: CohereConfig

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return super().compute_logits(hidden_states) * self.config.logit_scale
