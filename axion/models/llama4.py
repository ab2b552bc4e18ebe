"""Llama 4 (Meta, 2025): layers that attend within chunks, and layers without positions whose
queries grow with them. Of those that also see, only the text part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.activation import get_activation
from axion.layers.context import ForwardContext
from axion.layers.moe import Experts, Router, TransposedExpertLinear
from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.base import MLP, Attention
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class Llama4TextConfig(MoEConfig):
    """
    Attributes:
        intermediate_size: of an expert.
        intermediate_size_mlp: of the MLP in layers without experts.
        moe_layers: layers that have experts; each `interleave_moe_layer_step`th by default.
        no_rope_layers: 0 for each layer without, 1 for each with rotary positions; by default
            each `no_rope_layer_interval`th is without.
        layer_types: by default layers with rotary positions attend within chunks of
            `attention_chunk_size` tokens.
        use_qk_norm: queries and keys with rotary positions are normalised behind these.
        attn_temperature_tuning: queries without grow by `attn_scale` times the logarithm of how
            many times `floor_scale` tokens are before them.
    """

    default_rope_theta = 500_000.0

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Length = 131_072
    rms_norm_eps: Epsilon = 1e-5
    intermediate_size_mlp: Size = 16_384
    num_experts: NumExperts = 16
    num_experts_per_tok: NumExperts = 1
    moe_layers: list[Index] | None = None
    interleave_moe_layer_step: Size = 1
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4
    attention_chunk_size: Size | None = 8192
    layer_types: list[Literal["chunked_attention", "full_attention"]] | None = None
    use_qk_norm: bool = True
    attn_temperature_tuning: bool | int = True
    floor_scale: Size = 8192
    attn_scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = range(self.num_hidden_layers)
        if self.moe_layers is None:
            step = self.interleave_moe_layer_step
            self.moe_layers = list(layers[step - 1 :: step])
        if not self.no_rope_layers:
            interval = self.no_rope_layer_interval
            self.no_rope_layers = [int((layer + 1) % interval != 0) for layer in layers]
        if self.layer_types is None:
            self.layer_types = [
                "chunked_attention" if has_rope else "full_attention"
                for has_rope in self.no_rope_layers
            ]
        for name in ("no_rope_layers", "layer_types"):
            if len(getattr(self, name)) < len(layers):
                raise ValueError(f"{name} must have one entry for each layer")

    def is_sparse(self, layer_idx: int) -> bool:
        return layer_idx in self.moe_layers

    def chunk(self, layer_idx: int) -> int | None:
        """Tokens in the chunks within which the layer attends; None: it attends to all tokens."""
        is_chunked = self.layer_types[layer_idx] == "chunked_attention"
        return self.attention_chunk_size if is_chunked else None


class Llama4Attention(Attention):
    apply_rotary = staticmethod(apply_rotary_interleaved)

    def __init__(self, config: Llama4TextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.chunk = config.chunk(layer_idx)
        # What a token sees of its chunk is within a window as large.
        self.kv_cache_spec = self.kv_cache_spec._replace(window=self.chunk)
        self.has_rope = bool(config.no_rope_layers[layer_idx])
        self.norm_eps = config.rms_norm_eps if config.use_qk_norm else None
        self.growth = config.attn_scale if config.attn_temperature_tuning else 0.0
        self.floor_scale = config.floor_scale

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        if not self.has_rope:
            times = (context.positions + 1) // self.floor_scale
            growth = 1 + self.growth * torch.log1p(times)
            return (q * growth[:, None, None]).to(q.dtype), k
        q, k = super().rotate_qk(q, k, context)
        if self.norm_eps is None:
            return q, k
        size = (self.head_dim,)
        return F.rms_norm(q, size, eps=self.norm_eps), F.rms_norm(k, size, eps=self.norm_eps)


class Llama4Router(Router):
    """A weight is the sigmoid of a score, of itself alone."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        best, indices = self.logits(hidden_states).topk(self.top_k)
        return best.sigmoid(), indices


class Llama4Experts(Experts):
    """Weights are applied to what the experts read."""

    def __init__(self, config: Llama4TextConfig) -> None:
        num_experts, hidden_size = config.num_experts, config.hidden_size
        size = config.intermediate_size
        super().__init__(num_experts, hidden_size, size, get_activation(config.hidden_act))
        self.gate_up_proj = TransposedExpertLinear(
            num_experts, hidden_size, {"gate_proj": size, "up_proj": size}
        )
        self.down_proj = TransposedExpertLinear(num_experts, size, {"down_proj": hidden_size})

    def forward(self, hidden_states: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        weighted = hidden_states[:, None] * weights[..., None].to(hidden_states.dtype)
        ones, each = torch.ones_like(weights), indices.flatten()[:, None]
        out = super().forward(weighted.flatten(0, 1), ones.flatten()[:, None], each)
        return out.unflatten(0, indices.shape).sum(1)


class Llama4MoE(MoE):
    """Beside the experts that are chosen, one that every token passes."""

    def __init__(self, config: Llama4TextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.shared_expert = MLP(config, layer_idx)

    def router(self, config: MoEConfig) -> Router:
        return Llama4Router(config.hidden_size, config.num_experts, config.num_experts_per_tok)

    def build_experts(self, config: Llama4TextConfig) -> Experts:  # type: ignore[override]
        return Llama4Experts(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.shared_expert(hidden_states)


class Llama4MLP(MLP):
    def __init__(self, config: Llama4TextConfig, layer_idx: int) -> None:
        super().__init__(replace(config, intermediate_size=config.intermediate_size_mlp), layer_idx)


class Llama4ForCausalLM(MoEForCausalLM):
    architectures = ("Llama4ForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"\.feed_forward\.router\.", ".mlp.gate."),
        (r"\.feed_forward\.", ".mlp."),
    )
    config_cls = Llama4TextConfig
    attention_cls = Llama4Attention
    mlp_cls = Llama4MLP
    moe_cls = Llama4MoE
