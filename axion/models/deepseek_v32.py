"""DeepSeek-V3.2 (arXiv:2512.02556): a DeepSeek-V3 that attends to the tokens that it chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axion.layers.rotary import Length
from axion.models.config import Index, NumExperts, Size
from axion.models.sparse_mla import SparseMLAConfig, SparseMLAForCausalLM


@dataclass(kw_only=True)
class DeepseekV32Config(SparseMLAConfig):
    num_key_value_heads: Size | None = 128
    max_position_embeddings: Length = 163840
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 2048
    first_k_dense_replace: Index = 3
    num_nextn_predict_layers: Index = 1
    n_group: NumExperts | None = 8
    topk_group: NumExperts | None = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"


class DeepseekV32ForCausalLM(SparseMLAForCausalLM):
    architectures = ("DeepseekV32ForCausalLM",)
    config_cls = DeepseekV32Config
