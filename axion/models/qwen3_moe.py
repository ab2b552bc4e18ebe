"""Qwen3-MoE (arXiv:2505.09388): a Qwen3 with experts."""

from __future__ import annotations

from axion.models.moe import MoEForCausalLM
from axion.models.qwen2_moe import QwenMoEConfig
from axion.models.qwen3 import Qwen3Attention


class Qwen3MoeForCausalLM(MoEForCausalLM):
    architectures = ("Qwen3MoeForCausalLM",)
    config_cls = QwenMoEConfig
    attention_cls = Qwen3Attention
