"""Solar Open (arXiv:2601.07022): DeepSeek-V3's experts in every layer of a standard decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.layers.rotary import Length
from axion.models.config import Epsilon, NumExperts, Size
from axion.models.moe import SharedMoEConfig, SharedMoEForCausalLM


@dataclass(kw_only=True)
class SolarOpenConfig(SharedMoEConfig):
    """No layer has an MLP instead of experts, so that `intermediate_size` is not needed."""

    default_rope_theta = 1_000_000.0

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    num_experts: NumExperts = 128
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1280
    norm_topk_prob: bool = True

    @property
    def output_bias(self) -> bool:
        return False

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        size = config.get("intermediate_size") or config.get("moe_intermediate_size", 1280)
        return derived | {"intermediate_size": size}, sources


class SolarOpenForCausalLM(SharedMoEForCausalLM):
    architectures = ("SolarOpenForCausalLM",)
    config_cls = SolarOpenConfig
