"""SantaCoder and StarCoder (arXiv:2301.03988, arXiv:2305.06161): a GPT-2 whose heads share one key
and one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from axion.layers.linear import Linear
from axion.models.base import PlainMLP
from axion.models.gpt2 import GPT2Attention, GPT2Config, GPT2LMHeadModel


@dataclass(kw_only=True)
class GPTBigCodeConfig(GPT2Config):
    """
    Attributes:
        multi_query: all heads have the same keys and values; without it queries, keys and values
            are stored head by head.
    """

    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = True
    mlp_bias: bool = True
    multi_query: bool = True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        derived["num_key_value_heads"] = 1 if config.get("multi_query", True) else None
        more = {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}
        return derived, sources | more


class GPTBigCodeAttention(GPT2Attention):
    def __init__(self, config: GPTBigCodeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_kv_heads = config.num_key_value_heads
        size = config.hidden_size
        self.qkv_proj = Linear(size, size + 2 * self.num_kv_heads * self.head_dim, bias=True)
        self.o_proj = Linear(size, size, bias=True)

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        return qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2], qkv[:, :, -1]


class GPTBigCodeForCausalLM(GPT2LMHeadModel):
    architectures = ("GPTBigCodeForCausalLM",)
    config_cls = GPTBigCodeConfig
    attention_cls = GPTBigCodeAttention
    mlp_cls = PlainMLP
