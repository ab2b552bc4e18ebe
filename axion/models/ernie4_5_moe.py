"""ERNIE 4.5 with experts (Baidu, 2025): a bias takes part in the choice, not in the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from axion.layers.linear import Linear
from axion.layers.moe import Router
from axion.models.base import MLP
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.ernie4_5 import Ernie4_5Config, Ernie4_5ForCausalLM
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class Ernie4_5_MoeConfig(Ernie4_5Config, MoEConfig):  # noqa: N801
    """
    Attributes:
        moe_layer_start_index, moe_layer_end_index, moe_layer_interval: from the first of these
            layers to the second, -1 being the last of all, every so many-th has experts.
        moe_num_shared_experts: experts that every token passes, stored as one MLP.
        moe_norm_min: what the weights' sum, by which they are divided, is at least.
    """

    renamed_fields = (("moe_num_experts", "num_experts"), ("moe_k", "num_experts_per_tok"))

    num_key_value_heads: Size | None = 4
    head_dim: Size | None = None
    num_experts: NumExperts = 64
    num_experts_per_tok: NumExperts = 6
    moe_intermediate_size: Size = 1536
    moe_num_shared_experts: Index = 2
    moe_layer_start_index: Index = 1
    moe_layer_end_index: int = -1
    moe_layer_interval: Size = 1
    moe_norm_min: Epsilon = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moe_layer_end_index == -1:
            self.moe_layer_end_index = self.num_hidden_layers - 1

    def is_sparse(self, layer_idx: int) -> bool:
        is_within = self.moe_layer_start_index <= layer_idx <= self.moe_layer_end_index
        return is_within and (layer_idx + 1) % self.moe_layer_interval == 0


class Ernie4_5_MoeRouter(Router):  # noqa: N801
    """Softmax over all experts; the best by that and the bias together."""

    def __init__(self, config: Ernie4_5_MoeConfig) -> None:
        super().__init__(config.hidden_size, config.num_experts, config.num_experts_per_tok)
        self.norm_min = config.moe_norm_min
        self.register_buffer(
            "e_score_correction_bias", torch.empty(1, config.num_experts, dtype=torch.float32)
        )

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.logits(hidden_states).softmax(-1)
        indices = (scores + self.e_score_correction_bias).topk(self.top_k).indices
        weights = scores.gather(1, indices)
        return weights / weights.sum(-1, keepdim=True).clamp(min=self.norm_min), indices


class Ernie4_5_MoE(MoE):  # noqa: N801
    def __init__(self, config: Ernie4_5_MoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.has_shared = config.moe_num_shared_experts > 0
        if self.has_shared:
            size = config.moe_intermediate_size * config.moe_num_shared_experts
            self.shared_experts = MLP(replace(config, intermediate_size=size), layer_idx)

    def router(self, config: Ernie4_5_MoeConfig) -> Router:
        return Ernie4_5_MoeRouter(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = super().forward(hidden_states)
        return out + self.shared_experts(hidden_states) if self.has_shared else out


class Ernie4_5_MoeForCausalLM(MoEForCausalLM, Ernie4_5ForCausalLM):  # noqa: N801
    architectures = ("Ernie4_5_MoeForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"\.mlp\.(gate\.)?moe_statics\.", ".mlp.gate."),
    )
    # What guesses more tokens at a time.
    ignored_tensors = (*MoEForCausalLM.ignored_tensors, r"model\.mtp_.*")
    config_cls = Ernie4_5_MoeConfig
    moe_cls = Ernie4_5_MoE
    config: Ernie4_5_MoeConfig

    def head(self) -> Linear:
        return Linear(self.config.hidden_size, self.config.vocab_size, bias=self.config.mlp_bias)
