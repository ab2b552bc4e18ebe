"""OLMo Hybrid (Ai2, 2026): three layers of four are Gated DeltaNet with norms before it; the fourth
is a layer of OLMo 2, with or without positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.layers.activation import get_activation
from axion.layers.context import ForwardContext
from axion.layers.conv import PackedConv1d
from axion.layers.linear import PackedLinear
from axion.layers.norm import GatedRMSNorm
from axion.layers.rotary import Length
from axion.models.base import CausalLM, DecoderLayer
from axion.models.config import Size
from axion.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig, Projected
from axion.models.hybrid import HybridForCausalLM, num_layers
from axion.models.olmo2 import Olmo2Attention, Olmo2DecoderLayer

# Of the norm behind Gated DeltaNet, whatever rms_norm_eps says.
_GATED_EPS = 1e-5
_INITIAL = {
    *("linear_a_log_min", "linear_a_log_max"),
    *("linear_dt_min", "linear_dt_max", "linear_dt_init_floor"),
}


@dataclass(kw_only=True)
class OlmoHybridConfig(GatedDeltaNetConfig):
    """
    Attributes:
        has_rope: there is none where config.json says that the base is null.
        linear_allow_neg_eigval: a correction may go up to twice the error.
    """

    max_position_embeddings: Length = 65536
    has_rope: bool
    linear_num_key_heads: Size | None = None
    linear_num_value_heads: Size | None = None
    linear_key_head_dim: Size | None = None
    linear_value_head_dim: Size | None = None
    linear_allow_neg_eigval: bool = True

    def __post_init__(self) -> None:
        num_heads = self.num_attention_heads
        self.linear_num_key_heads = self.linear_num_key_heads or num_heads
        self.linear_num_value_heads = self.linear_num_value_heads or num_heads
        if self.linear_key_head_dim is None:
            self.linear_key_head_dim = int(0.75 * self.hidden_size / self.linear_num_key_heads)
        self.linear_value_head_dim = self.linear_value_head_dim or 2 * self.linear_key_head_dim
        super().__post_init__()

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = {**config, **(rope if isinstance(rope, dict) else {})}.get("rope_theta", 10_000.0)
        derived["has_rope"] = theta is not None
        if config.get("layer_types") is None:
            count = num_layers(config)
            kinds = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(count)]
            derived["layer_types"] = kinds if count > 3 else [*kinds[:-1], "full_attention"]
        return derived, sources | _INITIAL


class OlmoHybridAttention(Olmo2Attention):
    def __init__(self, config: OlmoHybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_rotated = config.has_rope

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return super().rotate_qk(q, k, context) if self.is_rotated else (q, k)


class OlmoHybridGatedDeltaNet(GatedDeltaNet):
    def __init__(self, config: OlmoHybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        num_heads = config.linear_num_value_heads
        self.in_proj = PackedLinear(
            config.hidden_size,
            {
                "q_proj": self.key_size,
                "k_proj": self.key_size,
                "v_proj": self.value_size,
                "g_proj": self.value_size,
                "b_proj": num_heads,
                "a_proj": num_heads,
            },
        )
        sizes = (self.key_size, self.key_size, self.value_size)
        self.conv1d = PackedConv1d(
            dict(zip(("q_conv1d", "k_conv1d", "v_conv1d"), sizes, strict=True)),
            config.linear_conv_kernel_dim,
            get_activation(config.hidden_act),
        )
        self.norm = GatedRMSNorm(self.v_dim, _GATED_EPS)
        self.max_correction = 2.0 if config.linear_allow_neg_eigval else 1.0

    def correction(self, beta: Tensor) -> Tensor:
        return super().correction(beta) * self.max_correction

    def project(self, hidden_states: Tensor) -> Projected:
        q, k, v, *others = self.in_proj(hidden_states)
        return Projected(torch.cat((q, k, v), dim=-1), *others)


class OlmoHybridForCausalLM(HybridForCausalLM):
    architectures = ("OlmoHybridForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"\.attention_layer_norm\.", ".input_layernorm."),
        (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."),
        (r"\.linear_attn\.o_norm\.", ".linear_attn.norm."),
        (r"\.linear_attn\.", ".self_attn."),
    )
    config_cls = OlmoHybridConfig
    mixers = (
        ("full_attention", OlmoHybridAttention),
        ("linear_attention", OlmoHybridGatedDeltaNet),
    )
    config: OlmoHybridConfig

    def layer(self, layer_idx: int) -> DecoderLayer:
        kind = self.config.layer_types[layer_idx]
        layer_cls = Olmo2DecoderLayer if kind == "full_attention" else DecoderLayer
        return layer_cls(self.config, layer_idx, self.mixer(layer_idx), self.mlp(layer_idx))
