"""XGLM (arXiv:2112.10668): sines and cosines of positions beside scaled embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.norm import LayerNorm
from axion.models.base import Attention, CausalLM, Decoder, PlainMLP
from axion.models.config import DecoderConfig

_FIRST_POSITION = 2


@dataclass(kw_only=True)
class XGLMConfig(DecoderConfig):
    """
    Attributes:
        scale_embedding: embeddings are multiplied by the root of their size.
        pad_token_id: at this position there are no sines and cosines.
    """

    renamed_fields = (
        ("d_model", "hidden_size"),
        ("ffn_dim", "intermediate_size"),
        ("num_layers", "num_hidden_layers"),
        ("attention_heads", "num_attention_heads"),
        ("activation_function", "hidden_act"),
    )

    hidden_act: str = "gelu"
    attention_bias: bool = True
    mlp_bias: bool = True
    tie_word_embeddings: bool = True
    scale_embedding: bool = True
    pad_token_id: int | None = 1

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size)


class XGLMAttention(Attention):
    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class XGLMDecoder(Decoder):
    def __init__(self, config: XGLMConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.padding = config.pad_token_id
        num_pairs = config.hidden_size // 2
        exponents = torch.arange(num_pairs, dtype=torch.float32, device="cpu") / (num_pairs - 1)
        self.register_buffer("frequencies", 10_000.0**-exponents, persistent=False)

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        positions = context.positions[:, None] + _FIRST_POSITION
        angles = positions.float() * self.frequencies
        places = torch.cat((angles.sin(), angles.cos()), dim=-1)
        if self.padding is not None:
            places = places * (positions != self.padding)
        embedded = super().embed(input_ids, context) * self.scale
        return embedded + places.to(embedded.dtype)


class XGLMForCausalLM(CausalLM):
    architectures = ("XGLMForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"^(model\.)?layer_norm\.", "model.norm."),
        (r"\.self_attn_layer_norm\.", ".input_layernorm."),
        (r"\.final_layer_norm\.", ".post_attention_layernorm."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.fc1\.", ".mlp.up_proj."),
        (r"\.fc2\.", ".mlp.down_proj."),
    )
    ignored_tensors = (r"model\.embed_positions\..*",)
    config_cls = XGLMConfig
    attention_cls = XGLMAttention
    mlp_cls = PlainMLP
    decoder_cls = XGLMDecoder
