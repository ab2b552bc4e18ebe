"""Granite 3 (IBM, 2024): four multipliers, of embedding, attention scores, residuals and logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.models.base import Attention, CausalLM, Decoder, DecoderLayer
from axion.models.config import DecoderConfig


@dataclass(kw_only=True)
class GraniteConfig(DecoderConfig):
    embedding_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0


class GraniteAttention(Attention):
    def __init__(self, config: GraniteConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scale = config.attention_multiplier


class GraniteDecoderLayer(DecoderLayer):
    def __init__(
        self, config: GraniteConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.multiplier = config.residual_multiplier

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        out = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.after_attention(out)
        out = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.after_mlp(out)

    def after_attention(self, out: Tensor) -> Tensor:
        """What is added of attention's `[num_tokens, hidden_size]`."""
        return out * self.multiplier

    def after_mlp(self, out: Tensor) -> Tensor:
        """The same of the MLP's."""
        return out * self.multiplier


class GraniteDecoder(Decoder):
    def __init__(self, config: GraniteConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.multiplier = config.embedding_multiplier

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return super().embed(input_ids, context) * self.multiplier


class GraniteForCausalLM(CausalLM):
    architectures = ("GraniteForCausalLM",)
    config_cls = GraniteConfig
    attention_cls = GraniteAttention
    layer_cls = GraniteDecoderLayer
    decoder_cls = GraniteDecoder
    config: GraniteConfig

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return super().compute_logits(hidden_states) / self.config.logits_scaling
