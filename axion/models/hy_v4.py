"""Hunyuan 4 (Tencent, 2026): DeepSeek-V3.2's sparse attention with sinks and a gate, over several
residual streams that each layer reads and writes by gates of its own (hyper-connections,
arXiv:2409.19606)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.context import ForwardContext
from axion.layers.hyper_connections import StreamReader
from axion.layers.linear import Linear
from axion.layers.moe import ClampedExperts, Experts
from axion.layers.norm import LayerNorm
from axion.layers.rotary import Length, Positive, apply_rotary
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.hyper_connections import HyperDecoder, HyperDecoderLayer, StreamsConfig
from axion.models.moe import SharedMoE
from axion.models.sparse_mla import SparseMLA, SparseMLAConfig, SparseMLAForCausalLM


@dataclass(kw_only=True)
class HYV4Config(StreamsConfig, SparseMLAConfig):
    """
    Attributes:
        hc_magnitude: the largest factor by which a layer's output is added to a stream; `hc_eps`
            is the least.
        swiglu_limit: experts' gates are clamped from above, what they multiply on both sides.
        learnable_sink_init: of training.
    """

    max_position_embeddings: Length = 262_144
    rms_norm_eps: Epsilon = 1e-5
    q_lora_rank: Size = 1536
    qk_nope_head_dim: Size = 192
    v_head_dim: Size = 256
    rope_interleave: Literal[False] = False  # type: ignore[assignment]
    index_n_heads: Size = 16
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 768
    first_k_dense_replace: Index = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.827
    hc_magnitude: float = 2.0
    swiglu_limit: Positive = 10.0
    learnable_sink_init: float = 0.0

    def __post_init__(self) -> None:
        self.num_key_value_heads = self.num_attention_heads
        if self.indexer_types is None:
            self.indexer_types = [
                "shared" if layer and (layer - 1) % 4 else "full"
                for layer in range(self.num_hidden_layers)
            ]
        super().__post_init__()


def _rotate_last(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last `2 * num_pairs` of each head; arguments as of `apply_rotary`."""
    rest, rotated = x.tensor_split((x.shape[-1] - cos.shape[-1],), dim=-1)
    return torch.cat((rest, apply_rotary(rotated, cos, sin)), dim=-1)


class HYV4Attention(SparseMLA):
    rotate_index = staticmethod(_rotate_last)

    def __init__(self, config: HYV4Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        num_heads = config.num_attention_heads
        self.gate_proj = Linear(config.hidden_size, num_heads * self.v_dim)
        self.sinks = nn.Parameter(torch.empty(num_heads), requires_grad=False)
        if hasattr(self, "indexer"):
            self.indexer.k_norm = LayerNorm(config.index_head_dim, config.rms_norm_eps)

    def attend(
        self, q: Tensor, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor:
        out = super().attend(q, q_latent, hidden_states, context)
        return out * self.gate_proj(hidden_states).sigmoid().unflatten(-1, (-1, self.v_dim))


class HYV4HyperConnection(StreamReader):
    """A block's output is added to each stream, by a gate of its own."""

    def __init__(self, config: HYV4Config) -> None:
        num_streams, eps = config.hc_mult, config.hc_eps
        super().__init__(
            num_streams, config.hidden_size, (num_streams,), norm_eps=config.rms_norm_eps, eps=eps
        )
        self.magnitude = config.hc_magnitude

    def write(self, streams: Tensor, out: Tensor, gates: list[Tensor]) -> Tensor:
        """As `axion.layers.hyper_connections.HyperConnection` does."""
        shares = self.magnitude * gates[0].sigmoid()[..., None] + self.eps
        return (shares * out[:, None].float() + streams.float()).to(streams.dtype)


class HYV4DecoderLayer(HyperDecoderLayer):
    def connection(self, config: HYV4Config) -> StreamReader:  # type: ignore[override]
        return HYV4HyperConnection(config)


class HYV4MoE(SharedMoE):
    def build_experts(self, config: HYV4Config) -> Experts:  # type: ignore[override]
        return ClampedExperts(
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            get_activation("silu"),
            limit=config.swiglu_limit,
        )


class HYV4ForCausalLM(SparseMLAForCausalLM):
    architectures = ("HYV4ForCausalLM",)
    renamed_tensors = (
        *SparseMLAForCausalLM.renamed_tensors,
        (r"\.hc_pre\.hc_attn_layer\.hc_", ".attn_hc."),
        (r"\.hc_pre\.hc_mlp_layer\.hc_", ".ffn_hc."),
        (r"\.(hc_pre\.)?hc_head\.hc_(head_)?", ".hc_head."),
        (r"\.learnable_sink_param$", ".sinks"),
        (r"\.linear_gate\.", ".gate_proj."),
    )
    ignored_tensors = (*SparseMLAForCausalLM.ignored_tensors, r"model\.mtp_layers\..*")
    config_cls = HYV4Config
    attention_cls = HYV4Attention
    layer_cls = HYV4DecoderLayer
    decoder_cls = HyperDecoder
    moe_cls = HYV4MoE
