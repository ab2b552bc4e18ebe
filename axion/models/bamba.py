"""Bamba (IBM, Princeton and UIUC, 2024): Mamba-2 with a few layers of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM
from axion.models.config import Epsilon, Size
from axion.models.hybrid import HybridForCausalLM, num_layers
from axion.models.mamba2_mixer import Mamba2Config, Mamba2Mixer


@dataclass(kw_only=True)
class BambaConfig(Mamba2Config):
    default_partial_rotary_factor = 0.5

    num_key_value_heads: Size | None = 8
    rms_norm_eps: Epsilon = 1e-5
    max_position_embeddings: Length = 262_144

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """`attn_layer_indices` says which layers are attention."""
        derived, sources = super()._derive(config)
        attention = config.get("attn_layer_indices")
        attention = attention if isinstance(attention, list) else []
        derived["layer_types"] = [
            "full_attention" if i in attention else "linear_attention"
            for i in range(num_layers(config))
        ]
        return derived, sources | {"attn_layer_indices"}


class BambaForCausalLM(HybridForCausalLM):
    architectures = ("BambaForCausalLM",)
    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"\.final_layernorm\.", ".norm."),
        (r"\.mamba\.", ".self_attn."),
        (r"\.feed_forward\.", ".mlp."),
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."),
    )
    config_cls = BambaConfig
    mixers = (("full_attention", Attention), ("linear_attention", Mamba2Mixer))
