"""Qwen3-MoE (arXiv:2505.09388): a Qwen3 with experts."""

from __future__ import annotations

from dataclasses import dataclass

from axion.models.config import NumExperts, Size
from axion.models.moe import MoEForCausalLM
from axion.models.qwen2_moe import Qwen2MoeBaseConfig
from axion.models.qwen3 import Qwen3ForCausalLM


@dataclass(kw_only=True)
class Qwen3MoeConfig(Qwen2MoeBaseConfig):
    """If the window is switched on, every layer has it."""

    num_key_value_heads: Size | None = 4
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 768


class Qwen3MoeForCausalLM(MoEForCausalLM, Qwen3ForCausalLM):
    architectures = ("Qwen3MoeForCausalLM",)
    config_cls = Qwen3MoeConfig
    config: Qwen3MoeConfig
