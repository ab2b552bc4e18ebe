"""BLOOM (arXiv:2211.05100): no positions but a bias on scores, and a norm behind the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from axion.layers.alibi import alibi_slopes
from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.models.base import Attention, CausalLM, Decoder, DecoderLayer, PlainMLP
from axion.models.config import GPTConfig


@dataclass(kw_only=True)
class BloomConfig(GPTConfig):
    """
    Attributes:
        apply_residual_connection_post_layernorm: residual connections begin behind the norms.
        slow_but_exact: says how a sum is cut into parts; the sum is the same.
    """

    renamed_fields = (
        ("n_embed", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("seq_length", "max_position_embeddings"),
    )

    hidden_act: str = "gelu_pytorch_tanh"
    attention_bias: bool = True
    mlp_bias: bool = True
    tie_word_embeddings: bool = True
    apply_residual_connection_post_layernorm: bool = False
    slow_but_exact: bool = False

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        # The MLP's width is no field.
        return super()._derive(config | {"intermediate_size": None})


class BloomAttention(Attention):
    def __init__(self, config: BloomConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.qkv_proj = Linear(config.hidden_size, self.qkv_proj.out_features, bias=True)
        self.alibi_slopes = alibi_slopes(config.num_attention_heads)

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv_proj(hidden_states).unflatten(-1, (-1, 3, self.head_dim)).unbind(-2)
        return q, k, v

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class BloomDecoderLayer(DecoderLayer):
    def __init__(
        self, config: BloomConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.adds_normalized = config.apply_residual_connection_post_layernorm

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        if not self.adds_normalized:
            return super().forward(hidden_states, context)
        normalized = self.input_layernorm(hidden_states)
        normalized = self.post_attention_layernorm(normalized + self.self_attn(normalized, context))
        return normalized + self.mlp(normalized)


class BloomDecoder(Decoder):
    def __init__(self, config: BloomConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.embed_norm = config.norm()

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return self.embed_norm(super().embed(input_ids, context))


class BloomForCausalLM(CausalLM):
    architectures = ("BloomForCausalLM",)
    renamed_tensors = (
        (r"^(transformer\.)?word_embeddings\.", "model.embed_tokens."),
        (r"^(transformer\.)?word_embeddings_layernorm\.", "model.embed_norm."),
        (r"^(transformer\.)?ln_f\.", "model.norm."),
        (r"^(transformer\.)?h\.", "model.layers."),
        (r"\.self_attention\.query_key_value\.", ".self_attn.qkv_proj."),
        (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
        (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
    )
    config_cls = BloomConfig
    attention_cls = BloomAttention
    mlp_cls = PlainMLP
    layer_cls = BloomDecoderLayer
    decoder_cls = BloomDecoder
