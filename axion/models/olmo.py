"""OLMo (arXiv:2402.00838): layer norms without weights; queries, keys and values may be clipped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.norm import LayerNorm
from axion.models.base import Attention, CausalLM
from axion.models.config import DecoderConfig


@dataclass(kw_only=True)
class OlmoConfig(DecoderConfig):
    clip_qkv: float | None = None

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, 1e-5, elementwise_affine=False)


class OlmoAttention(Attention):
    def __init__(self, config: OlmoConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.clip = config.clip_qkv

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project_qkv(hidden_states)
        if self.clip is None:
            return q, k, v
        return tuple(x.clamp(-self.clip, self.clip) for x in (q, k, v))


class OlmoForCausalLM(CausalLM):
    architectures = ("OlmoForCausalLM",)
    config_cls = OlmoConfig
    attention_cls = OlmoAttention
