"""FlexOlmo (arXiv:2507.07024): an OLMo 2 with experts."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.config import NumExperts
from axion.models.moe import MoEConfig, MoEForCausalLM
from axion.models.olmo2 import Olmo2ForCausalLM


@dataclass(kw_only=True)
class FlexOlmoConfig(MoEConfig):
    default_rope_theta = 500_000.0

    max_position_embeddings: Length = 4096
    num_experts: NumExperts = 7
    num_experts_per_tok: NumExperts = 5


class FlexOlmoForCausalLM(MoEForCausalLM, Olmo2ForCausalLM):
    architectures = ("FlexOlmoForCausalLM",)
    config_cls = FlexOlmoConfig
