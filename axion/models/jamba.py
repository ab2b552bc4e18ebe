"""Jamba (arXiv:2403.19887): Mamba with a layer of attention now and then, and experts in every
second layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from axion.layers.norm import RMSNorm
from axion.layers.rotary import Length
from axion.models.config import Index, NumExperts, Size
from axion.models.hybrid import HybridForCausalLM, UnrotatedAttention, num_layers, whole_number
from axion.models.mamba_mixer import MambaConfig, MambaMixer
from axion.models.moe import MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class JambaConfig(MambaConfig, MoEConfig):
    """
    Attributes:
        num_experts: 1 means an MLP in all layers.
        attn_layer_period, attn_layer_offset: every so many-th layer is attention, from this one on.
        expert_layer_period, expert_layer_offset: the same of the layers with experts.
    """

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 262_144
    num_experts: NumExperts = 16
    num_experts_per_tok: NumExperts = 2
    attn_layer_period: Size = 8
    attn_layer_offset: Index = 4
    expert_layer_period: Size = 2
    expert_layer_offset: Index = 1

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        period = whole_number(config, "attn_layer_period", 0) or cls.attn_layer_period
        offset = whole_number(config, "attn_layer_offset", cls.attn_layer_offset)
        derived["layer_types"] = [
            "attention" if i % period == offset else "mamba" for i in range(num_layers(config))
        ]
        if derived.get("num_experts") == 1:
            derived["num_experts_per_tok"] = 1
        return derived, sources

    def is_sparse(self, layer_idx: int) -> bool:
        is_period = layer_idx % self.expert_layer_period == self.expert_layer_offset
        return is_period and self.num_experts > 1


class JambaMamba(MambaMixer):
    """What a token chooses is normalised."""

    def __init__(self, config: JambaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        eps = config.rms_norm_eps
        self.dt_layernorm = RMSNorm(config.mamba_dt_rank, eps)
        self.b_layernorm = RMSNorm(config.mamba_d_state, eps)
        self.c_layernorm = RMSNorm(config.mamba_d_state, eps)

    def normalize(self, dt: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.dt_layernorm(dt), self.b_layernorm(b), self.c_layernorm(c)


class JambaForCausalLM(HybridForCausalLM, MoEForCausalLM):
    architectures = ("JambaForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"^model\.final_layernorm\.", "model.norm."),
        (r"\.mamba\.", ".self_attn."),
        (r"\.feed_forward\.", ".mlp."),
        (r"\.mlp\.router\.", ".mlp.gate."),
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."),
    )
    config_cls = JambaConfig
    mixers = (("attention", UnrotatedAttention), ("mamba", JambaMamba))
    config: JambaConfig
