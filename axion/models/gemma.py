"""Gemma (arXiv:2403.08295): embeddings are scaled, and norms multiply by 1 + weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.norm import OffsetRMSNorm
from axion.layers.rotary import Length
from axion.models.base import CausalLM, Decoder
from axion.models.config import DecoderConfig, Size


@dataclass(kw_only=True)
class GemmaConfig(DecoderConfig):
    """`hidden_activation` replaced `hidden_act`, whose "gelu" means the approximation by tanh."""

    num_key_value_heads: Size | None = 16
    head_dim: Size | None = 256
    hidden_act: str = "gelu"
    hidden_activation: str | None = None
    max_position_embeddings: Length = 8192
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_act == "gelu":
            self.hidden_act = "gelu_pytorch_tanh"
        self.hidden_act = self.hidden_activation or self.hidden_act

    def norm(self) -> OffsetRMSNorm:
        return OffsetRMSNorm(self.hidden_size, self.rms_norm_eps)


class GemmaDecoder(Decoder):
    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        hidden_states = self.embed_tokens(input_ids)
        # Trained with the factor rounded to the number format of the weights.
        factor = torch.tensor(hidden_states.shape[-1] ** 0.5, dtype=hidden_states.dtype)
        return hidden_states * factor


class GemmaForCausalLM(CausalLM):
    architectures = ("GemmaForCausalLM",)
    config_cls = GemmaConfig
    decoder_cls = GemmaDecoder
