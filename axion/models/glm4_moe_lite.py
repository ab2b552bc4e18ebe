"""GLM-4.7-Flash (Z.ai, 2026): DeepSeek-V3's latent attention and experts in other sizes."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import SharedMoEForCausalLM


@dataclass(kw_only=True)
class Glm4MoeLiteConfig(MLAConfig):
    num_key_value_heads: Size | None = 20
    max_position_embeddings: Length = 202752
    rms_norm_eps: Epsilon = 1e-5
    num_experts: NumExperts = 64
    num_experts_per_tok: NumExperts = 4
    moe_intermediate_size: Size = 1536
    first_k_dense_replace: Index = 1
    num_nextn_predict_layers: Index = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.8
    q_lora_rank: Size | None = 768
    qk_nope_head_dim: Size = 192
    v_head_dim: Size = 256


class Glm4MoeLiteForCausalLM(SharedMoEForCausalLM):
    architectures = ("Glm4MoeLiteForCausalLM",)
    config_cls = Glm4MoeLiteConfig
    attention_cls = MLA
