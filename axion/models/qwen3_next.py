"""Qwen3-Next (Qwen, 2025): three layers of four are Gated DeltaNet, the attention of the fourth has
a gate, and beside the experts is a shared one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext
from axion.layers.linear import Linear, PackedLinear
from axion.layers.norm import OffsetRMSNorm
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM
from axion.models.config import NumExperts, Size
from axion.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig, Projected
from axion.models.hybrid import HybridForCausalLM, num_layers, whole_number
from axion.models.moe import MoEForCausalLM
from axion.models.qwen2_moe import Qwen2MoE, Qwen2MoeStepConfig


@dataclass(kw_only=True)
class Qwen3NextBaseConfig(GatedDeltaNetConfig):
    """The fields that Qwen3.5 has too."""

    default_partial_rotary_factor = 0.25

    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 256
    max_position_embeddings: Length = 32768

    def norm(self) -> OffsetRMSNorm:
        return OffsetRMSNorm(self.hidden_size, self.rms_norm_eps)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Without `layer_types` every `full_attention_interval`-th layer is attention."""
        derived, sources = super()._derive(config)
        if config.get("layer_types") is None:
            interval = whole_number(config, "full_attention_interval", 4) or 4
            derived["layer_types"] = [
                "linear_attention" if (i + 1) % interval else "full_attention"
                for i in range(num_layers(config))
            ]
        return derived, sources | {"full_attention_interval"}


class GatedAttention(Attention):
    """What each head returns passes a gate, and queries and keys are normalised per head."""

    def __init__(self, config: Qwen3NextBaseConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        query_size, *other_sizes = self.qkv_proj.shards.values()
        self.qkv_proj = PackedLinear(
            config.hidden_size,
            dict(zip(self.qkv_proj.shards, (2 * query_size, *other_sizes), strict=True)),
            bias=config.attention_bias,
        )
        self.q_norm = OffsetRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = OffsetRMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        q, k, v = self.project_qkv(hidden_states)
        q, gate = q.unflatten(1, (-1, 2)).unbind(2)
        q, k = self.rotate_qk(self.q_norm(q), self.k_norm(k), context)
        cache = context.kv_caches[self.layer_idx]
        chosen = self.choose(hidden_states, context)
        out = paged_attention(q, k, v, cache, context, scale=self.scale, chosen=chosen)
        return self.o_proj((out * gate.sigmoid()).flatten(1))

    def choose(self, hidden_states: Tensor, context: ForwardContext) -> Tensor | None:
        """The tokens that each attends to, as `paged_attention` takes them; None: all."""
        return None


@dataclass(kw_only=True)
class Qwen3NextConfig(Qwen3NextBaseConfig, Qwen2MoeStepConfig):
    num_experts: NumExperts = 512
    num_experts_per_tok: NumExperts = 10
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    norm_topk_prob: bool = True


class Qwen3NextMoE(Qwen2MoE):
    """As that of Qwen2-MoE; Qwen3.5 has it too."""


class Qwen3NextGatedDeltaNet(GatedDeltaNet):
    """What belongs to one key head is stored together."""

    def __init__(self, config: Qwen3NextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        hidden_size, num_heads = config.hidden_size, config.linear_num_value_heads
        self.in_proj_qkvz = Linear(hidden_size, 2 * self.key_size + 2 * self.value_size)
        self.in_proj_ba = Linear(hidden_size, 2 * num_heads)

    def project(self, hidden_states: Tensor) -> Projected:
        num_keys, per_key = self.key_size // self.k_dim, self.values_per_key
        sizes = (self.k_dim, self.k_dim, per_key * self.v_dim, per_key * self.v_dim)
        qkvz = self.in_proj_qkvz(hidden_states).unflatten(-1, (num_keys, -1))
        q, k, v, z = (x.flatten(1) for x in qkvz.split(sizes, dim=-1))
        b, a = self.in_proj_ba(hidden_states).unflatten(-1, (num_keys, 2, -1)).unbind(2)
        return Projected(torch.cat((q, k, v), dim=-1), z, b.flatten(1), a.flatten(1))


class Qwen3NextForCausalLM(HybridForCausalLM, MoEForCausalLM):
    architectures = ("Qwen3NextForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"\.linear_attn\.out_proj\.", ".self_attn.o_proj."),
        (r"\.linear_attn\.", ".self_attn."),
    )
    ignored_tensors = (*CausalLM.ignored_tensors, r"mtp\..*")
    config_cls = Qwen3NextConfig
    moe_cls = Qwen3NextMoE
    mixers = (("full_attention", GatedAttention), ("linear_attention", Qwen3NextGatedDeltaNet))
    config: Qwen3NextConfig
