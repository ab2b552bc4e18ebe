"""DeepSeek-V2 (arXiv:2405.04434): latent attention, and experts in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from axion.layers.moe import Router, best_groups
from axion.models.config import NumExperts, Size
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import SharedMoE, SharedMoEForCausalLM


@dataclass(kw_only=True)
class DeepseekV2Config(MLAConfig):
    """
    Attributes:
        norm_topk_prob: always false: what true would mean with a scaling factor is not agreed on.
    """

    num_experts: NumExperts = 64
    moe_intermediate_size: Size = 1407
    n_shared_experts: NumExperts = 2
    norm_topk_prob: Literal[False] = False
    scoring_func: Literal["softmax"] = "softmax"
    topk_method: Literal["greedy", "group_limited_greedy"] = "greedy"


class DeepseekV2Router(Router):
    """Softmax over all experts; the best, or the best of the groups whose one best is best."""

    def __init__(self, config: DeepseekV2Config) -> None:
        super().__init__(config.hidden_size, config.num_experts, config.num_experts_per_tok)
        self.is_limited = config.topk_method == "group_limited_greedy"
        self.num_groups, self.top_k_groups = config.n_group, config.topk_group
        self.scaling_factor = config.routed_scaling_factor

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.logits(hidden_states).softmax(-1)
        if self.is_limited:
            group_scores = scores.unflatten(-1, (self.num_groups, -1)).amax(-1)
            scores = best_groups(scores, group_scores, self.top_k_groups, fill=0.0)
        weights, indices = scores.topk(self.top_k)
        return weights * self.scaling_factor, indices


class DeepseekV2MoE(SharedMoE):
    def router(self, config: DeepseekV2Config) -> Router:
        return DeepseekV2Router(config)


class DeepseekV2ForCausalLM(SharedMoEForCausalLM):
    architectures = ("DeepseekV2ForCausalLM",)
    config_cls = DeepseekV2Config
    attention_cls = MLA
    moe_cls = DeepseekV2MoE
