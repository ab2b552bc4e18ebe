"""MiniMax-M2 (MiniMax, 2025): DeepSeek-V3's router without its groups; all queries and all keys are
normalised together; a part of each head is rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from axion.layers.moe import Router, SigmoidRouter
from axion.layers.rotary import Length
from axion.models.config import NumExperts, Size
from axion.models.mixtral import MixtralForCausalLM
from axion.models.moe import MoE, MoEConfig
from axion.models.olmo2 import Olmo2Attention


@dataclass(kw_only=True)
class MiniMaxM2Config(MoEConfig):
    """Older checkpoints have `rotary_dim` for `partial_rotary_factor`."""

    default_rope_theta = 5_000_000.0

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Length = 196608
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    use_qk_norm: Literal[True] = True
    scoring_func: Literal["sigmoid"] = "sigmoid"

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        if (rotary_dim := config.get("rotary_dim")) is not None:
            factor = rotary_dim / config.get("head_dim", 128)
            config = {"partial_rotary_factor": factor, **config}
        derived, sources = super()._derive(config)
        return derived, sources | {"rotary_dim"}


class MiniMaxM2Attention(Olmo2Attention):
    """Norms over all queries and all keys, as OLMo 2's, before a part of each head is rotated."""


class MiniMaxM2MoE(MoE):
    def router(self, config: MiniMaxM2Config) -> Router:
        return SigmoidRouter(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=True,
            scaling_factor=1.0,
        )


class MiniMaxM2ForCausalLM(MixtralForCausalLM):
    architectures = ("MiniMaxM2ForCausalLM",)
    renamed_tensors = (
        *MixtralForCausalLM.renamed_tensors,
        (r"\.mlp\.e_score_correction_bias$", ".mlp.gate.e_score_correction_bias"),
    )
    config_cls = MiniMaxM2Config
    attention_cls = MiniMaxM2Attention
    moe_cls = MiniMaxM2MoE
