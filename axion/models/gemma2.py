"""Gemma 2 (arXiv:2408.00118): every other layer attends to a window, norms on both sides of
attention and MLP, soft caps on scores and logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.rotary import Positive
from axion.models.base import Attention, DecoderLayer
from axion.models.config import Size, WindowConfig
from axion.models.gemma import GemmaConfig, GemmaForCausalLM


@dataclass(kw_only=True)
class Gemma2Config(GemmaConfig, WindowConfig):
    num_key_value_heads: Size | None = 4
    hidden_activation: str | None = "gelu_pytorch_tanh"
    sliding_window_pattern: Size | None = 2
    query_pre_attn_scalar: Positive = 256
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0


class Gemma2Attention(Attention):
    def __init__(self, config: Gemma2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scale = config.query_pre_attn_scalar**-0.5
        self.softcap = config.attn_logit_softcapping


class Gemma2DecoderLayer(DecoderLayer):
    def __init__(
        self, config: Gemma2Config, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.pre_feedforward_layernorm = config.norm()
        self.post_feedforward_layernorm = config.norm()

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        transformed = self.mlp(self.pre_feedforward_layernorm(hidden_states))
        return hidden_states + self.post_feedforward_layernorm(transformed)


class Gemma2ForCausalLM(GemmaForCausalLM):
    architectures = ("Gemma2ForCausalLM",)
    config_cls = Gemma2Config
    attention_cls = Gemma2Attention
    layer_cls = Gemma2DecoderLayer

    config: Gemma2Config

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        logits, cap = super().compute_logits(hidden_states), self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)
