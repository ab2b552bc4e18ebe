"""Apertus (arXiv:2509.14233): an activation with parameters, an MLP without a gate, and queries and
keys normalised per head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.rotary import Length
from axion.models.base import CausalLM, HeadNormAttention, PlainMLP
from axion.models.config import DecoderConfig, Epsilon

# What a config.json without any rotary settings means.
_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


@dataclass(kw_only=True)
class ApertusConfig(DecoderConfig):
    default_rope_theta = 12_000_000.0

    hidden_act: str = "xielu"
    max_position_embeddings: Length = 65536
    rms_norm_eps: Epsilon = 1e-5

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        if not (config.get("rope_parameters") or config.get("rope_scaling")):
            config = config | {"rope_parameters": _ROPE}
        return super()._derive(config)


class XIELU(nn.Module):
    """xIELU (arXiv:2411.13010): a parabola above 0, an exponential below, each with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1), requires_grad=False)
        self.alpha_n = nn.Parameter(torch.empty(1), requires_grad=False)
        self.register_buffer("beta", torch.empty(()))
        self.register_buffer("eps", torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        beta, eps = self.beta.to(x.dtype), self.eps.to(x.dtype)
        above = F.softplus(self.alpha_p) * x * x
        below = (torch.expm1(torch.min(x, eps)) - x) * (beta + F.softplus(self.alpha_n))
        return torch.where(x > 0, above, below) + beta * x


class ApertusMLP(PlainMLP):
    def __init__(self, config: ApertusConfig, layer_idx: int) -> None:
        is_xielu = config.hidden_act == "xielu"
        super().__init__(replace(config, hidden_act="silu") if is_xielu else config, layer_idx)
        if is_xielu:
            self.activation = XIELU()


class ApertusForCausalLM(CausalLM):
    architectures = ("ApertusForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"\.attention_layernorm\.", ".input_layernorm."),
        (r"\.feedforward_layernorm\.", ".post_attention_layernorm."),
        (r"\.act_fn\.", ".activation."),
    )
    config_cls = ApertusConfig
    attention_cls = HeadNormAttention
    mlp_cls = ApertusMLP
