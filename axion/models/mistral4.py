"""Mistral 4 (Mistral AI, 2026): DeepSeek's latent attention, whose queries grow beyond the original
context, and a softmax over experts in groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.moe import Router, best_groups
from axion.layers.rotary import Length, rotary_embedding
from axion.models.config import NumExperts, Size
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import SharedMoE, SharedMoEForCausalLM

_ROPE = {
    "rope_type": "yarn",
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(kw_only=True)
class Mistral4Config(MLAConfig):
    """
    Attributes:
        llama_4_scaling_beta: how fast the queries grow; stands in `rope_parameters`.
    """

    num_key_value_heads: Size | None = 32
    max_position_embeddings: Length = 1_048_576
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 4
    moe_intermediate_size: Size = 2048
    norm_topk_prob: bool = True
    kv_lora_rank: Size = 256
    q_lora_rank: Size | None = 1024
    qk_nope_head_dim: Size = 64
    llama_4_scaling_beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        if self.rope_parameters.partial_rotary_factor == 1.0:  # it is left out
            factor = self.qk_rope_head_dim / self.head_dim
            self.rope_parameters = replace(self.rope_parameters, partial_rotary_factor=factor)
        rotated = int(self.head_dim * self.rope_parameters.partial_rotary_factor)
        if rotated != self.qk_rope_head_dim:
            raise ValueError(
                f"partial_rotary_factor must make qk_rope_head_dim ({self.qk_rope_head_dim}) of "
                f"a head of {self.head_dim}, not {rotated}"
            )

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        rope = config.get("rope_scaling") or config.get("rope_parameters") or _ROPE
        beta = 0.0
        if isinstance(rope, dict):
            beta = rope.get("llama_4_scaling_beta", 0.0)
            rope = {name: value for name, value in rope.items() if name != "llama_4_scaling_beta"}
        derived, sources = super()._derive(config | {"rope_scaling": rope})
        return derived | {"llama_4_scaling_beta": beta}, sources


class Mistral4Attention(MLA):
    def __init__(self, config: Mistral4Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # Its part that is rotated is told of a whole head.
        self.rotary_emb = rotary_embedding(config.rope(layer_idx), self.head_dim)
        self.beta = config.llama_4_scaling_beta
        self.original_length = config.rope_parameters.original_max_position_embeddings

    def attend(
        self, q: Tensor, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor:
        growth = 1 + self.beta * torch.log1p(context.positions // self.original_length)
        q = q * growth[:, None, None].to(q.dtype)
        return super().attend(q, q_latent, hidden_states, context)


class Mistral4Router(Router):
    """Softmax over all experts; the best of the groups whose two best are best."""

    def __init__(self, config: Mistral4Config) -> None:
        super().__init__(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
        )
        self.num_groups, self.top_k_groups = config.n_group, config.topk_group
        self.scaling_factor = config.routed_scaling_factor

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.logits(hidden_states).softmax(-1)
        if self.top_k_groups < self.num_groups:
            group_scores = scores.unflatten(-1, (self.num_groups, -1)).topk(2).values.sum(-1)
            scores = best_groups(scores, group_scores, self.top_k_groups, fill=0.0)
        weights, indices = scores.topk(self.top_k)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scaling_factor, indices


class Mistral4MoE(SharedMoE):
    def router(self, config: Mistral4Config) -> Router:  # type: ignore[override]
        return Mistral4Router(config)


class Mistral4ForCausalLM(SharedMoEForCausalLM):
    architectures = ("Mistral4ForCausalLM",)
    config_cls = Mistral4Config
    attention_cls = Mistral4Attention
    moe_cls = Mistral4MoE
