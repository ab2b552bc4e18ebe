"""DeepSeekMoE (arXiv:2401.06066), and what reads and writes text in DeepSeek-OCR: DeepSeek-V2's
experts behind a Llama's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axion.models.config import NumExperts, Size
from axion.models.deepseek_v2 import DeepseekV2MoE
from axion.models.moe import SharedMoEConfig, SharedMoEForCausalLM


@dataclass(kw_only=True)
class DeepseekConfig(SharedMoEConfig):
    """
    Attributes:
        moe_layer_freq: always 1: layers from `first_k_dense_replace` on all have experts.
        norm_topk_prob: always false, as in DeepSeek-V2.
    """

    num_experts: NumExperts = 64
    moe_intermediate_size: Size = 1407
    n_shared_experts: NumExperts = 2
    moe_layer_freq: Literal[1] = 1
    norm_topk_prob: Literal[False] = False
    scoring_func: Literal["softmax"] = "softmax"
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"


class DeepseekMoE(DeepseekV2MoE):
    """A DeepSeek-V2's."""


class DeepseekForCausalLM(SharedMoEForCausalLM):
    architectures = ("DeepseekForCausalLM",)
    config_cls = DeepseekConfig
    moe_cls = DeepseekMoE
