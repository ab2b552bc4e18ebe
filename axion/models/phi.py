"""Phi-1, 1.5 and 2 (arXiv:2306.11644): attention and MLP beside each other, biases everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.linear import Linear
from axion.layers.norm import LayerNorm
from axion.models.base import Attention, CausalLM, ParallelDecoderLayer, PlainMLP
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class PhiConfig(DecoderConfig):
    default_partial_rotary_factor = 0.5

    hidden_act: str = "gelu_new"
    layer_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    mlp_bias: bool = True
    qk_layernorm: bool = False

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.layer_norm_eps)


class PhiAttention(Attention):
    def __init__(self, config: PhiConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_layernorm, self.k_layernorm = (
            LayerNorm(config.head_dim, config.layer_norm_eps)
            if config.qk_layernorm
            else nn.Identity()
            for _ in range(2)
        )

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_layernorm(q), self.k_layernorm(k)


class PhiForCausalLM(CausalLM):
    architectures = ("PhiForCausalLM",)
    renamed_tensors = (
        (r"\.dense\.", ".o_proj."),
        (r"\.fc1\.", ".up_proj."),
        (r"\.fc2\.", ".down_proj."),
        (r"\bfinal_layernorm\.", "norm."),
        *CausalLM.renamed_tensors,
    )
    config_cls = PhiConfig
    attention_cls = PhiAttention
    mlp_cls = PlainMLP
    layer_cls = ParallelDecoderLayer

    def head(self) -> Linear:
        return Linear(self.config.hidden_size, self.config.vocab_size, bias=True)
