"""Kimi Linear (arXiv:2510.26692): most layers are Kimi delta attention, a Gated DeltaNet whose
state fades in each channel at a rate of its own; the others are latent attention without
positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axion.layers.rotary import Length
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.hybrid import HybridForCausalLM
from axion.models.kimi_delta_attention import KimiDeltaAttention, KimiDeltaConfig
from axion.models.mla import MLAConfig, UnrotatedMLA
from axion.models.moe import SharedMoEForCausalLM


@dataclass(kw_only=True)
class KimiLinearConfig(KimiDeltaConfig, MLAConfig):
    """
    Attributes:
        moe_router_activation_func, use_grouped_topk: the router is DeepSeek-V3's.
        mla_use_nope: latent attention has no positions.
    """

    renamed_fields = (
        ("model_max_length", "max_position_embeddings"),
        ("moe_renormalize", "norm_topk_prob"),
        ("num_expert_group", "n_group"),
        ("num_experts_per_token", "num_experts_per_tok"),
        ("num_shared_experts", "n_shared_experts"),
        *KimiDeltaConfig.renamed_fields,
    )

    max_position_embeddings: Length = 1048576
    rms_norm_eps: Epsilon = 1e-5
    q_lora_rank: Size | None = None
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1024
    first_k_dense_replace: Index = 1
    n_group: NumExperts | None = 1
    topk_group: NumExperts | None = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.446
    moe_router_activation_func: Literal["sigmoid"] = "sigmoid"
    use_grouped_topk: Literal[True] = True
    mla_use_nope: Literal[True] = True
    linear_num_key_heads: Size = 32

    @classmethod
    def is_linear(cls, layer_idx: int) -> bool:
        return layer_idx % 4 > 0 or not layer_idx


class KimiLinearForCausalLM(HybridForCausalLM, SharedMoEForCausalLM):
    architectures = ("KimiLinearForCausalLM",)
    renamed_tensors = (
        *SharedMoEForCausalLM.renamed_tensors,
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
        (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
        (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
        (r"\.self_attn\.o_norm\.", ".self_attn.norm."),
    )
    config_cls = KimiLinearConfig
    mixers = (("full_attention", UnrotatedMLA), ("linear_attention", KimiDeltaAttention))
    config: KimiLinearConfig
