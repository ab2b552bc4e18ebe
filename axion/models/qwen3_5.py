"""Qwen3.5 (Qwen, 2026): the layers of Qwen3-Next, dense or with experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from axion.layers.linear import PackedLinear
from axion.models.base import CausalLM, TextPart
from axion.models.config import NumExperts, Size
from axion.models.gated_delta_net import GatedDeltaNet, Projected
from axion.models.hybrid import HybridForCausalLM
from axion.models.moe import MoEConfig, MoEForCausalLM
from axion.models.qwen3_next import GatedAttention, Qwen3NextBaseConfig, Qwen3NextMoE


@dataclass(kw_only=True)
class Qwen3_5Config(Qwen3NextBaseConfig):  # noqa: N801
    num_key_value_heads: Size | None = 4
    attn_output_gate: Literal[True] = True


class Qwen3_5GatedDeltaNet(GatedDeltaNet):  # noqa: N801
    def __init__(self, config: Qwen3_5Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        num_heads = config.linear_num_value_heads
        self.in_proj = PackedLinear(
            config.hidden_size,
            {
                "in_proj_qkv": 2 * self.key_size + self.value_size,
                "in_proj_z": self.value_size,
                "in_proj_b": num_heads,
                "in_proj_a": num_heads,
            },
        )

    def project(self, hidden_states: Tensor) -> Projected:
        return Projected(*self.in_proj(hidden_states))


class Qwen3_5Attention(GatedAttention):  # noqa: N801
    """As that of Qwen3-Next; Qwen4-Exp has it too."""


class Qwen3_5ForCausalLM(HybridForCausalLM):  # noqa: N801
    architectures = ("Qwen3_5ForCausalLM",)
    renamed_tensors = (
        *TextPart.renamed_tensors,
        *CausalLM.renamed_tensors,
        (r"\.linear_attn\.out_proj\.", ".self_attn.o_proj."),
        (r"\.linear_attn\.", ".self_attn."),
    )
    ignored_tensors = (*TextPart.ignored_tensors, r"mtp\..*", r"model\.visual\..*")
    config_cls = Qwen3_5Config
    mixers = (("full_attention", Qwen3_5Attention), ("linear_attention", Qwen3_5GatedDeltaNet))


@dataclass(kw_only=True)
class Qwen3_5MoeConfig(Qwen3_5Config, MoEConfig):  # noqa: N801
    """Every layer has experts."""

    intermediate_size: Size = 512
    num_key_value_heads: Size | None = 2
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 512
    shared_expert_intermediate_size: Size = 512
    norm_topk_prob: Literal[True] = True


class Qwen3_5MoeForCausalLM(MoEForCausalLM, Qwen3_5ForCausalLM):  # noqa: N801
    architectures = ("Qwen3_5MoeForCausalLM",)
    renamed_tensors = (*MoEForCausalLM.renamed_tensors, *Qwen3_5ForCausalLM.renamed_tensors)
    config_cls = Qwen3_5MoeConfig
    moe_cls = Qwen3NextMoE
    config: Qwen3_5MoeConfig
