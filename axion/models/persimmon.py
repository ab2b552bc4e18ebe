"""Persimmon (Adept, 2023): GPT-NeoX's layers with attention before the MLP, and queries and keys
normalised per head. Fuyu's text part, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from axion.layers.norm import LayerNorm
from axion.layers.rotary import Length
from axion.models.base import CausalLM
from axion.models.gpt_neox import GPTNeoXAttention, GPTNeoXConfig, GPTNeoXForCausalLM


@dataclass(kw_only=True)
class PersimmonConfig(GPTNeoXConfig):
    default_partial_rotary_factor = 0.5

    hidden_act: str = "relu2"
    max_position_embeddings: Length = 16_384
    use_parallel_residual: Literal[False] = False  # type: ignore[assignment]
    qk_layernorm: bool = True


class PersimmonAttention(GPTNeoXAttention):
    def __init__(self, config: PersimmonConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_layernorm, self.k_layernorm = (
            LayerNorm(self.head_dim, config.layer_norm_eps)
            if config.qk_layernorm
            else nn.Identity()
            for _ in range(2)
        )

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_layernorm(q), self.k_layernorm(k)


class PersimmonForCausalLM(GPTNeoXForCausalLM):
    architectures = ("PersimmonForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"^(model\.)?final_layernorm\.", "model.norm."),
        (r"\.self_attn\.query_key_value\.", ".self_attn.qkv_proj."),
        (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
        (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
    )
    ignored_tensors = CausalLM.ignored_tensors
    config_cls = PersimmonConfig
    attention_cls = PersimmonAttention
