"""NanoChat (karpathy/nanochat): norms without weights, one of them before the first layer, heads
that are rotated backwards and normalised after it, a squared ReLU, and a soft cap on logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.rotary import Positive, apply_rotary
from axion.models.base import Attention, CausalLM, Decoder, PlainMLP
from axion.models.config import DecoderConfig


@dataclass(kw_only=True)
class NanoChatConfig(DecoderConfig):
    hidden_act: str = "relu2"
    final_logit_softcapping: Positive | None = 15.0

    def norm(self) -> nn.Module:
        return nn.RMSNorm(self.hidden_size, self.rms_norm_eps, elementwise_affine=False)


def rotate_backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return apply_rotary(x, cos, -sin)


class NanoChatAttention(Attention):
    apply_rotary = staticmethod(rotate_backwards)

    def __init__(self, config: NanoChatConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps, elementwise_affine=False)
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps, elementwise_affine=False)

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        q, k = super().rotate_qk(q, k, context)
        return self.q_norm(q), self.k_norm(k)


class NanoChatDecoder(Decoder):
    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return self.norm(super().embed(input_ids, context))


class NanoChatForCausalLM(CausalLM):
    architectures = ("NanoChatForCausalLM",)
    renamed_tensors = (
        (r"\.fc1\.", ".up_proj."),
        (r"\.fc2\.", ".down_proj."),
        *CausalLM.renamed_tensors,
    )
    config_cls = NanoChatConfig
    attention_cls = NanoChatAttention
    mlp_cls = PlainMLP
    decoder_cls = NanoChatDecoder

    config: NanoChatConfig

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        logits, cap = super().compute_logits(hidden_states), self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)
