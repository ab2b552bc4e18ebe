"""gpt-oss (arXiv:2508.10925): every projection is biased, attention has sinks, every second layer a
window, and the experts' gates are clamped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axion.layers.activation import apply_sigmoid_gate, get_activation
from axion.layers.moe import Experts, Router, TransposedExpertLinear
from axion.layers.rotary import Length
from axion.models.base import Attention
from axion.models.config import Epsilon, NumExperts, Size, WindowConfig
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM

# What a config.json without any rotary settings means.
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(kw_only=True)
class GptOssConfig(WindowConfig, MoEConfig):
    """
    Attributes:
        swiglu_alpha: factor within the gate's sigmoid.
        swiglu_limit: the gate is clamped from above, what it multiplies on both sides.
    """

    default_rope_theta = 150_000.0

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 64
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    sliding_window: Size | None = 128
    sliding_window_pattern: Size | None = 2
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 4
    norm_topk_prob: bool = True
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        if not (config.get("rope_parameters") or config.get("rope_scaling")):
            config = config | {"rope_parameters": _YARN}
        derived, sources = super()._derive(config)
        return derived, sources | {"experts_per_token", "initial_context_length"}


class GptOssAttention(Attention):
    def __init__(self, config: GptOssConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.sinks = nn.Parameter(torch.empty(config.num_attention_heads), requires_grad=False)


class GptOssExperts(Experts):
    def __init__(self, config: GptOssConfig) -> None:
        num_experts, hidden_size = config.num_experts, config.hidden_size
        size = config.moe_intermediate_size
        super().__init__(num_experts, hidden_size, size, get_activation(config.hidden_act))
        self.gate_up_proj = TransposedExpertLinear(
            num_experts, hidden_size, {"gate_up_proj": 2 * size}, bias=True
        )
        self.down_proj = TransposedExpertLinear(
            num_experts, size, {"down_proj": hidden_size}, bias=True
        )
        self.alpha, self.limit = config.swiglu_alpha, config.swiglu_limit

    def activate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.unflatten(-1, (-1, 2)).unbind(-1)
        return apply_sigmoid_gate(gate, up, alpha=self.alpha, limit=self.limit)


class GptOssMoE(MoE):
    def router(self, config: MoEConfig) -> Router:
        return Router(config.hidden_size, config.num_experts, config.num_experts_per_tok, bias=True)

    def build_experts(self, config: GptOssConfig) -> Experts:
        return GptOssExperts(config)


class GptOssForCausalLM(MoEForCausalLM):
    architectures = ("GptOssForCausalLM",)
    renamed_tensors = (*MoEForCausalLM.renamed_tensors, (r"\.mlp\.router\.", ".mlp.gate."))
    config_cls = GptOssConfig
    attention_cls = GptOssAttention
    moe_cls = GptOssMoE
