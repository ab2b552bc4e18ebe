"""Phi-3.5-MoE (arXiv:2404.14219): a Mixtral with LayerNorms, whose router softmaxes each of its two
choices apart (SparseMixer, arXiv:2409.12136).

Beyond the original context the long factors of its rope are used, as the authors' code and vLLM use
them; transformers 5 always takes the short ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.linear import Linear
from axion.layers.moe import Router
from axion.layers.norm import LayerNorm
from axion.models.config import NumExperts
from axion.models.mixtral import MixtralConfig, MixtralForCausalLM
from axion.models.moe import MoE, MoEConfig


@dataclass(kw_only=True)
class PhimoeConfig(MixtralConfig):
    """
    Attributes:
        router_jitter_noise: experts whose score is further below the best, in parts of it, than
            twice this take no part in its softmax.
    """

    num_experts: NumExperts = 16
    num_experts_per_tok: Literal[2] = 2
    router_jitter_noise: float = 0.01
    lm_head_bias: bool = False

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.rms_norm_eps)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        rope = config.get(name)
        if isinstance(rope, dict) and "short_mscale" in rope:
            rope = dict(rope)
            short, long = rope.pop("short_mscale"), rope.pop("long_mscale", None)
            if short != long:
                raise ModelLoadError(
                    f"config.json: short_mscale ({short}) and long_mscale ({long}) must be equal."
                )
            config = config | {name: rope | {"attention_factor": short}}
        derived, sources = super()._derive(config)
        return derived, sources | {"input_jitter_noise"}


class PhimoeRouter(Router):
    def __init__(self, config: PhimoeConfig) -> None:
        super().__init__(config.hidden_size, config.num_experts, config.num_experts_per_tok)
        self.tolerance = 2 * config.router_jitter_noise

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        logits = left = self.logits(hidden_states)
        weights, indices = [], []
        for _ in range(self.top_k):
            best, index = left.max(-1, keepdim=True)
            is_far = (best - logits) / logits.abs().clamp(min=best) > self.tolerance
            near = left.masked_fill(is_far, -torch.inf)
            weights.append(near.softmax(-1).gather(-1, index))
            indices.append(index)
            left = left.scatter(-1, index, -torch.inf)
        return torch.cat(weights, -1), torch.cat(indices, -1)


class PhimoeMoE(MoE):
    def router(self, config: MoEConfig) -> Router:
        assert isinstance(config, PhimoeConfig)
        return PhimoeRouter(config)


class PhimoeForCausalLM(MixtralForCausalLM):
    architectures = ("PhimoeForCausalLM", "PhiMoEForCausalLM")
    renamed_tensors = (*MixtralForCausalLM.renamed_tensors, (r"\.mlp\.router\.", ".mlp.gate."))
    config_cls = PhimoeConfig
    moe_cls = PhimoeMoE
    config: PhimoeConfig

    def head(self) -> Linear:
        config = self.config
        return Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
