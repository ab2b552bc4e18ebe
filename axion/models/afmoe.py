"""AFMoE (Arcee's Trinity, 2025): K-EXAONE's attention with a gate, norms on both sides of attention
and MLP, and DeepSeek-V3's experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from axion.layers.activation import apply
from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.norm import Float32RMSNorm
from axion.layers.rotary import Length
from axion.models.base import Decoder, DecoderLayer
from axion.models.config import NumExperts, Size
from axion.models.exaone_moe import ExaoneMoeAttention, ExaoneMoeConfig, ExaoneMoeForCausalLM


@dataclass(kw_only=True)
class AfmoeConfig(ExaoneMoeConfig):
    """
    Attributes:
        mup_enabled: embeddings are multiplied by the root of their size.
    """

    renamed_fields = (
        *ExaoneMoeConfig.renamed_fields,
        ("global_attn_every_n_layers", "sliding_window_pattern"),
        ("num_dense_layers", "first_k_dense_replace"),
        ("route_scale", "routed_scaling_factor"),
        ("route_norm", "norm_topk_prob"),
        ("score_func", "scoring_func"),
    )

    head_dim: Size | None = 128
    max_position_embeddings: Length = 16_384
    sliding_window: Size | None = 1024
    num_experts_per_tok: NumExperts = 6
    moe_intermediate_size: Size = 1408
    n_shared_experts: NumExperts = 2
    norm_topk_prob: Literal[True] = True  # type: ignore[assignment]
    scoring_func: Literal["sigmoid"] = "sigmoid"
    routed_scaling_factor: float = 1.0
    mup_enabled: bool = False

    @property
    def output_bias(self) -> bool:
        return self.attention_bias

    def norm(self) -> nn.Module:
        return Float32RMSNorm(self.hidden_size, self.rms_norm_eps)


class AfmoeAttention(ExaoneMoeAttention):
    def __init__(self, config: AfmoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.has_rope = config.is_sliding(layer_idx)
        self.q_norm = Float32RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = Float32RMSNorm(config.head_dim, config.rms_norm_eps)
        self.gate_proj = Linear(config.hidden_size, config.num_attention_heads * config.head_dim)

    def gate_heads(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        return out * apply(torch.sigmoid, self.gate_proj(hidden_states)).view_as(out)


class AfmoeDecoderLayer(DecoderLayer):
    def __init__(
        self, config: AfmoeConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.pre_mlp_layernorm = config.norm()
        self.post_mlp_layernorm = config.norm()

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        transformed = self.mlp(self.pre_mlp_layernorm(hidden_states))
        return hidden_states + self.post_mlp_layernorm(transformed)


class AfmoeDecoder(Decoder):
    def __init__(self, config: AfmoeConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.scale = config.hidden_size**0.5 if config.mup_enabled else 1.0

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return super().embed(input_ids, context) * self.scale


class AfmoeForCausalLM(ExaoneMoeForCausalLM):
    architectures = ("AfmoeForCausalLM",)
    renamed_tensors = (
        *ExaoneMoeForCausalLM.renamed_tensors,
        (r"\.mlp\.router\.gate\.", ".mlp.gate."),
        (r"\.mlp\.expert_bias$", ".mlp.gate.e_score_correction_bias"),
    )
    config_cls = AfmoeConfig
    attention_cls = AfmoeAttention
    layer_cls = AfmoeDecoderLayer
    decoder_cls = AfmoeDecoder
