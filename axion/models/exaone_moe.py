"""K-EXAONE (LG AI Research, 2026): EXAONE 4's attention, norms before each block, and DeepSeek-V3's
experts."""

from __future__ import annotations

from dataclasses import dataclass

from axion.models.config import Index, NumExperts, Size
from axion.models.exaone4 import Exaone4Attention, Exaone4Config
from axion.models.moe import SharedMoEConfig, SharedMoEForCausalLM


@dataclass(kw_only=True)
class ExaoneMoeConfig(Exaone4Config, SharedMoEConfig):
    renamed_fields = (("num_shared_experts", "n_shared_experts"),)

    num_experts: NumExperts = 64
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1024
    norm_topk_prob: bool = True
    first_k_dense_replace: Index = 1
    routed_scaling_factor: float = 2.5


class ExaoneMoeAttention(Exaone4Attention):
    """An EXAONE 4's."""


class ExaoneMoeForCausalLM(SharedMoEForCausalLM):
    architectures = ("ExaoneMoeForCausalLM",)
    renamed_tensors = (
        *SharedMoEForCausalLM.renamed_tensors,
        (r"\.mlp\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),
    )
    ignored_tensors = (*SharedMoEForCausalLM.ignored_tensors, r"mtp\..*")
    config_cls = ExaoneMoeConfig
    attention_cls = ExaoneMoeAttention
