"""Falcon-H1 (arXiv:2507.22448): attention and Mamba-2 beside each other in every layer, and a
multiplier almost everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.norm import GroupRMSNorm
from axion.layers.rotary import Length
from axion.models.base import MLP, Attention, CausalLM, Decoder
from axion.models.config import Epsilon, Size
from axion.models.hybrid import HybridForCausalLM, num_layers
from axion.models.mamba2_mixer import Mamba2Config, Mamba2Mixer

_Two = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]
_Five = Annotated[list[float], msgspec.Meta(min_length=5, max_length=5)]


@dataclass(kw_only=True)
class FalconH1Config(Mamba2Config):
    """
    Attributes:
        mlp_multipliers: of gates and of the output.
        ssm_multipliers: of gates, inputs, what writes to the state, what reads it, and steps.
        mamba_rms_norm: whether Mamba's output is normalised, and not just gated.
        projectors_bias: of Mamba's output; `mamba_proj_bias` of its input.
    """

    num_key_value_heads: Size | None = 8
    rms_norm_eps: Epsilon = 1e-5
    max_position_embeddings: Length = 8192
    mamba_rms_norm: bool = False
    mamba_norm_before_gate: bool = True
    projectors_bias: bool = False
    lm_head_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    key_multiplier: float = 1.0
    attention_in_multiplier: float = 1.0
    attention_out_multiplier: float = 1.0
    ssm_in_multiplier: float = 1.0
    ssm_out_multiplier: float = 1.0
    mlp_multipliers: _Two = field(default_factory=lambda: [1.0] * 2)
    ssm_multipliers: _Five = field(default_factory=lambda: [1.0] * 5)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive({"mamba_d_ssm": 1024} | config)
        derived["layer_types"] = ["hybrid"] * num_layers(config)
        return derived, sources | {"mamba_d_ssm"}


class FalconH1Attention(Attention):
    def __init__(self, config: FalconH1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.key_multiplier = config.key_multiplier

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k * self.key_multiplier


class Gate(nn.Module):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """`[..., size]` each to the same."""
        return x * F.silu(gate)


class FalconH1Mamba(Mamba2Mixer):
    def __init__(self, config: FalconH1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.out_proj = Linear(self.size, config.hidden_size, bias=config.projectors_bias)
        self.multiplier = config.ssm_in_multiplier
        sizes = (self.size, self.size, self.group_size, self.group_size, self.num_heads)
        multipliers = [
            torch.full((size,), multiplier, device="cpu")
            for size, multiplier in zip(sizes, config.ssm_multipliers, strict=True)
        ]
        self.register_buffer("multipliers", torch.cat(multipliers), persistent=False)

    def gated_norm(self, config: FalconH1Config) -> nn.Module:  # type: ignore[override]
        if not config.mamba_rms_norm:
            return Gate()
        return GroupRMSNorm(
            self.size,
            config.rms_norm_eps,
            num_groups=config.mamba_n_groups,
            norm_before_gate=config.mamba_norm_before_gate,
        )

    def project(self, hidden_states: Tensor) -> Tensor:
        projected = self.in_proj(hidden_states * self.multiplier)
        return projected * self.multipliers.to(projected.dtype)


class FalconH1Mixer(nn.Module):
    def __init__(self, config: FalconH1Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = FalconH1Attention(config, layer_idx)
        self.mamba = FalconH1Mamba(config, layer_idx)
        self.kv_cache_spec = self.attention.kv_cache_spec
        self.state_spec = self.mamba.state_spec
        self.in_multiplier = config.attention_in_multiplier
        self.attention_multiplier = config.attention_out_multiplier
        self.mamba_multiplier = config.ssm_out_multiplier

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        attended = self.attention(hidden_states * self.in_multiplier, context)
        scanned = self.mamba(hidden_states, context)
        return scanned * self.mamba_multiplier + attended * self.attention_multiplier


class FalconH1MLP(MLP):
    def __init__(self, config: FalconH1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.gate_multiplier, self.down_multiplier = config.mlp_multipliers

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden_states)
        out = self.down_proj(up * self.activation(gate * self.gate_multiplier))
        return out * self.down_multiplier


class FalconH1Decoder(Decoder):
    def __init__(self, config: FalconH1Config, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.multiplier = config.embedding_multiplier

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return super().embed(input_ids, context) * self.multiplier


class FalconH1ForCausalLM(HybridForCausalLM):
    architectures = ("FalconH1ForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"\.final_layernorm\.", ".norm."),
        (r"\.self_attn\.", ".self_attn.attention."),
        (r"\.mamba\.", ".self_attn.mamba."),
        (r"\.feed_forward\.", ".mlp."),
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."),
    )
    config_cls = FalconH1Config
    mlp_cls = FalconH1MLP
    decoder_cls = FalconH1Decoder
    mixers = (("hybrid", FalconH1Mixer),)
    config: FalconH1Config

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return super().compute_logits(hidden_states) * self.config.lm_head_multiplier
