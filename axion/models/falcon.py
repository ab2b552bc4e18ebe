"""Falcon (arXiv:2311.16867): attention and MLP beside each other, keys behind their queries.

Biases on scores (ALiBi) are not rounded to bfloat16, as transformers rounds them in whatever dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.alibi import alibi_slopes
from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.models.base import Attention, CausalLM, DecoderLayer, PlainMLP
from axion.models.config import GPTConfig, Size


@dataclass(kw_only=True)
class FalconConfig(GPTConfig):
    """
    Attributes:
        num_kv_heads: of the new decoder architecture; the older one has as many as queries, or
            one if `multi_query`.
        alibi: a bias on scores in place of a rope (Falcon-RW).
        num_ln_in_parallel_attn: whether attention and MLP share a norm (1) or not (2), which is
            the default of the new decoder architecture.
    """

    renamed_fields = (
        ("n_embed", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("ffn_hidden_size", "intermediate_size"),
        ("activation", "hidden_act"),
    )

    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True
    bias: bool = False
    new_decoder_architecture: bool = False
    multi_query: bool = True
    num_kv_heads: Size | None = None
    parallel_attn: bool = True
    alibi: bool = False
    num_ln_in_parallel_attn: int | None = None

    def __post_init__(self) -> None:
        self.attention_bias = self.mlp_bias = self.bias
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_attention_heads
        has_one = self.multi_query and not self.new_decoder_architecture
        self.num_key_value_heads = 1 if has_one else self.num_kv_heads
        super().__post_init__()
        if self.num_ln_in_parallel_attn is None:
            self.num_ln_in_parallel_attn = 2 if self.new_decoder_architecture else 1
        if not self.new_decoder_architecture and self.num_ln_in_parallel_attn != 1:
            raise ValueError("num_ln_in_parallel_attn=2 needs new_decoder_architecture")
        if self.new_decoder_architecture and not self.parallel_attn:
            raise ValueError("new_decoder_architecture needs parallel_attn")


class FalconAttention(Attention):
    def __init__(self, config: FalconConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_kv_heads = config.num_key_value_heads
        size = sum(self.qkv_proj.shards.values())
        self.qkv_proj = Linear(config.hidden_size, size, bias=config.bias)
        if config.alibi:
            self.alibi_slopes = alibi_slopes(config.num_attention_heads) * self.scale

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        return qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2], qkv[:, :, -1]

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return (q, k) if self.alibi_slopes is not None else super().rotate_qk(q, k, context)


class FalconDecoderLayer(DecoderLayer):
    def __init__(
        self, config: FalconConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.is_parallel = config.parallel_attn
        if self.is_parallel and config.num_ln_in_parallel_attn == 1:
            self.post_attention_layernorm = None

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        if not self.is_parallel:
            return super().forward(hidden_states, context)
        normalized = self.input_layernorm(hidden_states)
        out = hidden_states + self.self_attn(normalized, context)
        if self.post_attention_layernorm is not None:
            normalized = self.post_attention_layernorm(hidden_states)
        return out + self.mlp(normalized)


class FalconForCausalLM(CausalLM):
    architectures = ("FalconForCausalLM", "RWForCausalLM")
    renamed_tensors = (
        (r"^(transformer\.)?word_embeddings\.", "model.embed_tokens."),
        (r"^(transformer\.)?ln_f\.", "model.norm."),
        (r"^(transformer\.)?h\.", "model.layers."),
        (r"\.ln_attn\.", ".input_layernorm."),
        (r"\.ln_mlp\.", ".post_attention_layernorm."),
        (r"\.self_attention\.query_key_value\.", ".self_attn.qkv_proj."),
        (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
        (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
    )
    config_cls = FalconConfig
    attention_cls = FalconAttention
    mlp_cls = PlainMLP
    layer_cls = FalconDecoderLayer
