"""Hunyuan (Tencent, 2025): queries and keys are normalised per head after they are rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.norm import RMSNorm
from axion.models.base import Attention, CausalLM
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class HunYuanDenseV1Config(DecoderConfig):
    """With `alpha` a rope of type `dynamic` has a longer base, whatever the length."""

    rms_norm_eps: Epsilon = 1e-5
    mlp_bias: Literal[False] = False
    use_qk_norm: Literal[True] = True
    use_cla: Literal[False] = False

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        rope = config.get(name) or {}
        if rope.get("alpha") and rope.get("rope_type", rope.get("type")) == "dynamic":
            dim = config.get("head_dim")
            dim = dim or config["hidden_size"] // config["num_attention_heads"]
            theta = rope.get("rope_theta") or config.get("rope_theta") or cls.default_rope_theta
            config = config | {name: {"rope_theta": theta * rope["alpha"] ** (dim / (dim - 2))}}
        return super()._derive(config)


class HunYuanDenseV1Attention(Attention):
    def __init__(self, config: HunYuanDenseV1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.query_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        q, k = super().rotate_qk(q, k, context)
        return self.query_layernorm(q), self.key_layernorm(k)


class HunYuanDenseV1ForCausalLM(CausalLM):
    architectures = ("HunYuanDenseV1ForCausalLM",)
    config_cls = HunYuanDenseV1Config
    attention_cls = HunYuanDenseV1Attention
