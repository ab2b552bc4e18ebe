"""OLMoE (arXiv:2409.02060): an OLMo 2's norms of queries and keys, an OLMo's clipping, experts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from axion.layers.rotary import Length
from axion.models.config import Epsilon, NumExperts
from axion.models.moe import MoEConfig, MoEForCausalLM
from axion.models.olmo2 import Olmo2Attention


@dataclass(kw_only=True)
class OlmoeConfig(MoEConfig):
    max_position_embeddings: Length = 4096
    rms_norm_eps: Epsilon = 1e-5
    num_experts: NumExperts = 64
    num_experts_per_tok: NumExperts = 8
    clip_qkv: float | None = None


class OlmoeAttention(Olmo2Attention):
    def __init__(self, config: OlmoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.clip = config.clip_qkv

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project_qkv(hidden_states)
        return q, k, self._clipped(v)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super().normalize_qk(q, k)
        return self._clipped(q), self._clipped(k)

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class OlmoeForCausalLM(MoEForCausalLM):
    architectures = ("OlmoeForCausalLM",)
    config_cls = OlmoeConfig
    attention_cls = OlmoeAttention
