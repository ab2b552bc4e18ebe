"""GLM-4.5 (arXiv:2508.06471): DeepSeek-V3's experts; half of each head is rotated, its two halves
as pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from axion.layers.norm import RMSNorm
from axion.layers.rotary import Length
from axion.models.base import Attention
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.moe import SharedMoEConfig, SharedMoEForCausalLM


@dataclass(kw_only=True)
class Glm4MoeConfig(SharedMoEConfig):
    default_partial_rotary_factor = 0.5

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1408
    norm_topk_prob: bool = True
    first_k_dense_replace: Index = 1
    num_nextn_predict_layers: Index = 1
    use_qk_norm: bool = False

    @property
    def output_bias(self) -> bool:
        return False


class Glm4MoeAttention(Attention):
    def __init__(self, config: Glm4MoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.use_qk_norm = config.use_qk_norm
        if config.use_qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (self.q_norm(q), self.k_norm(k)) if self.use_qk_norm else (q, k)


class Glm4MoeForCausalLM(SharedMoEForCausalLM):
    architectures = ("Glm4MoeForCausalLM",)
    config_cls = Glm4MoeConfig
    attention_cls = Glm4MoeAttention
