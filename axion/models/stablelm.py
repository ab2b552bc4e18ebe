"""StableLM (arXiv:2402.17834): layer norms, a quarter of each head rotated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.norm import LayerNorm
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM, DecoderLayer, ParallelDecoderLayer
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class StableLmConfig(DecoderConfig):
    default_partial_rotary_factor = 0.25

    max_position_embeddings: Length = 4096
    layer_norm_eps: Epsilon = 1e-5
    use_qkv_bias: bool = False
    qk_layernorm: bool = False
    use_parallel_residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attention_bias = self.use_qkv_bias

    @property
    def output_bias(self) -> bool:
        return False

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.layer_norm_eps)


class LayerNormPerHead(nn.Module):
    """A layer norm of its own for each head of `[num_tokens, num_heads, head_dim]`."""

    def __init__(self, num_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(head_dim, eps, bias=False) for _ in range(num_heads))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.stack([norm.weight for norm in self.norms])
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * weight


class StableLmAttention(Attention):
    def __init__(self, config: StableLmConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_layernorm, self.k_layernorm = (
            LayerNormPerHead(num_heads, config.head_dim, config.layer_norm_eps)
            if config.qk_layernorm
            else nn.Identity()
            for num_heads in (config.num_attention_heads, config.num_key_value_heads)
        )

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_layernorm(q), self.k_layernorm(k)


class StableLmForCausalLM(CausalLM):
    architectures = ("StableLmForCausalLM",)
    config_cls = StableLmConfig
    attention_cls = StableLmAttention
    config: StableLmConfig

    def layer(self, layer_idx: int) -> DecoderLayer:
        config = self.config
        layer_cls = ParallelDecoderLayer if config.use_parallel_residual else DecoderLayer
        return layer_cls(
            config,
            layer_idx,
            self.attention_cls(config, layer_idx),
            self.mlp_cls(config, layer_idx),
        )
