"""LFM3 (Liquid AI, 2026): LFM2 with some attention over a window, gated heads, and norms on both
sides of each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.models.base import MLP, DecoderLayer, HeadNormAttention
from axion.models.config import LocalRopeConfig, NumLayers, Size
from axion.models.hybrid import num_layers
from axion.models.lfm2 import Lfm2ForCausalLM, ShortConv, ShortConvConfig

_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 1_000_000.0,
        "partial_rotary_factor": 0.5,
    },
}


@dataclass(kw_only=True)
class Lfm3Config(LocalRopeConfig, ShortConvConfig):
    """
    Attributes:
        use_sandwich_norm: what a block returns is normalised, too.
        use_attention_gate: what each head returns passes a gate.
    """

    vocab_size: Size = 128_000
    hidden_size: Size = 2048
    intermediate_size: Size = 7680
    num_hidden_layers: NumLayers = 24
    num_attention_heads: Size = 16
    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 128
    conv_L_cache: Size = 7  # noqa: N815
    sliding_window: Size | None = 256
    layer_types: list[str]  # type: ignore[assignment]
    use_sandwich_norm: bool = True
    use_attention_gate: bool = True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        ropes = config.get("rope_parameters") or _ROPES
        kinds = config.get("layer_types") or [
            "full_attention" if i % 4 == 2 else "conv" if i % 4 or not i else "sliding_attention"
            for i in range(num_layers({"num_hidden_layers": cls.num_hidden_layers} | config))
        ]
        own = {"rope_parameters": ropes, "layer_types": kinds}
        derived, sources = super()._derive(config | own)
        return derived | {"layer_types": kinds}, sources


class Lfm3Attention(HeadNormAttention):
    def __init__(self, config: Lfm3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if config.use_attention_gate:
            self.gate_proj = Linear(config.hidden_size, config.num_attention_heads)
        self.has_gate = config.use_attention_gate

    def gate_heads(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        if not self.has_gate:
            return out
        return out * self.gate_proj(hidden_states).sigmoid()[..., None]


class Lfm3DecoderLayer(DecoderLayer):
    def __init__(
        self, config: Lfm3Config, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.post_operator_norm = config.norm() if config.use_sandwich_norm else nn.Identity()
        self.post_ffn_norm = config.norm() if config.use_sandwich_norm else nn.Identity()

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.post_operator_norm(mixed)
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.post_ffn_norm(transformed)


class Lfm3ForCausalLM(Lfm2ForCausalLM):
    architectures = ("Lfm3ForCausalLM",)
    config_cls = Lfm3Config
    layer_cls = Lfm3DecoderLayer
    mlp_cls = MLP
    mixers = (
        ("full_attention", Lfm3Attention),
        ("sliding_attention", Lfm3Attention),
        ("conv", ShortConv),
    )
