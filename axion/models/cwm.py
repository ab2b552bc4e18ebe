"""Code World Model (arXiv:2510.02387): every fourth layer, from the first on, has no window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.layers.rotary import Length
from axion.models.base import CausalLM
from axion.models.config import Epsilon, Size, WindowConfig

# What a config.json without any rotary settings means.
_ROPE = {
    "rope_type": "llama3",
    "factor": 16.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(kw_only=True)
class CwmConfig(WindowConfig):
    default_rope_theta = 1_000_000.0

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = 8192

    def is_sliding(self, layer_idx: int) -> bool:
        return super().is_sliding(layer_idx) if self.layer_types is not None else layer_idx % 4 > 0

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        if not (config.get("rope_parameters") or config.get("rope_scaling")):
            config = config | {"rope_parameters": _ROPE}
        return super()._derive(config)


class CwmForCausalLM(CausalLM):
    architectures = ("CwmForCausalLM",)
    config_cls = CwmConfig
