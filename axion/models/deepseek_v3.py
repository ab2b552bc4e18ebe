"""DeepSeek-V3 and R1 (arXiv:2412.19437): a DeepSeek-V2 whose router is a sigmoid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axion.layers.rotary import Length
from axion.models.config import Index, NumExperts, Size
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import SharedMoEForCausalLM


@dataclass(kw_only=True)
class DeepseekV3Config(MLAConfig):
    max_position_embeddings: Length = 4096
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


class DeepseekV3ForCausalLM(SharedMoEForCausalLM):
    architectures = ("DeepseekV3ForCausalLM",)
    config_cls = DeepseekV3Config
    attention_cls = MLA
