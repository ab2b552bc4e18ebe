"""Cohere 2 with experts (Cohere, 2026): the first layers may have an MLP instead, and then rotary
positions in any case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.moe import Router
from axion.layers.norm import RMSNorm
from axion.models.base import MLP, Attention
from axion.models.cohere2 import Cohere2Attention, Cohere2Config, Cohere2ForCausalLM
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class Cohere2MoeConfig(Cohere2Config, MoEConfig):
    """
    Attributes:
        mlp_layer_types: which layers have experts; without it all but the first
            `first_k_dense_replace`.
        prefix_dense_intermediate_size: width of the MLP in the others.
        prefix_dense_sliding_window_pattern: without `layer_types`, `sliding_window_pattern` of
            those others; if it is 1, they have rotary positions without a window too.
        expert_selection_fn, norm_topk_prob: what makes weights of the best scores, and whether
            those of a sigmoid are divided by their sum.
        num_shared_experts: experts that every token passes, stored as one MLP; what they give is
            added to the others', or the two are averaged.
        rms_norm_eps: if there is one, norms are RMS norms.
    """

    head_dim: Size | None = 128
    num_experts: NumExperts = 8
    num_experts_per_tok: NumExperts = 2
    norm_topk_prob: bool = True
    rms_norm_eps: Epsilon | None = None
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None
    first_k_dense_replace: Index = 0
    prefix_dense_intermediate_size: Size | None = None
    prefix_dense_sliding_window_pattern: Size = 1
    expert_selection_fn: Literal["softmax", "sigmoid"] = "softmax"
    num_shared_experts: Index = 0
    shared_expert_combination_strategy: Literal["sum", "average"] = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_layer_types is None:
            first = min(self.first_k_dense_replace, self.num_hidden_layers)
            num_sparse = self.num_hidden_layers - first
            self.mlp_layer_types = ["dense"] * first + ["sparse"] * num_sparse
        if len(self.mlp_layer_types) != self.num_hidden_layers:
            raise ValueError(f"mlp_layer_types must name {self.num_hidden_layers} layers")
        if "dense" in self.mlp_layer_types and self.prefix_dense_intermediate_size is None:
            raise ValueError("dense layers need prefix_dense_intermediate_size")

    def is_sparse(self, layer_idx: int) -> bool:
        return self.mlp_layer_types[layer_idx] == "sparse"

    def is_sliding(self, layer_idx: int) -> bool:
        first = self.first_k_dense_replace
        if self.layer_types is not None or layer_idx >= first:
            return super().is_sliding(layer_idx - (0 if self.layer_types else first))
        return (layer_idx + 1) % self.prefix_dense_sliding_window_pattern > 0

    def norm(self) -> nn.Module:
        if self.rms_norm_eps is None:
            return super().norm()
        return RMSNorm(self.hidden_size, self.rms_norm_eps)


class Cohere2MoeAttention(Cohere2Attention):
    def __init__(self, config: Cohere2MoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        is_plain = config.prefix_dense_sliding_window_pattern == 1
        self.has_rope = self.window is not None or (is_plain and not config.is_sparse(layer_idx))

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return Attention.rotate_qk(self, q, k, context) if self.has_rope else (q, k)


class Cohere2MoeMLP(MLP):
    def __init__(self, config: Cohere2MoeConfig, layer_idx: int) -> None:
        size = config.prefix_dense_intermediate_size
        super().__init__(replace(config, intermediate_size=size), layer_idx)


class SigmoidScores(Router):
    """The best experts' scores are sigmoids."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        best, indices = self.logits(hidden_states).topk(self.top_k)
        weights = best.sigmoid()
        return weights / weights.sum(-1, keepdim=True) if self.norm_topk_prob else weights, indices


class Cohere2MoE(MoE):
    def __init__(self, config: Cohere2MoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_shared = config.num_shared_experts
        self.averages = config.shared_expert_combination_strategy == "average"
        if self.num_shared:
            size = config.intermediate_size * self.num_shared
            self.shared_experts = MLP(replace(config, intermediate_size=size), layer_idx)

    def router(self, config: Cohere2MoeConfig) -> Router:
        is_sigmoid = config.expert_selection_fn == "sigmoid"
        return (SigmoidScores if is_sigmoid else Router)(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob if is_sigmoid else True,
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        out = super().forward(hidden_states)
        if not self.num_shared:
            return out
        out = out + self.shared_experts(hidden_states)
        return out / 2 if self.averages else out


class Cohere2MoeForCausalLM(MoEForCausalLM, Cohere2ForCausalLM):
    architectures = ("Cohere2MoeForCausalLM",)
    config_cls = Cohere2MoeConfig
    attention_cls = Cohere2MoeAttention
    mlp_cls = Cohere2MoeMLP
    moe_cls = Cohere2MoE
    config: Cohere2MoeConfig
