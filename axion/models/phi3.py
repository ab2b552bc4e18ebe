"""Phi-3 (arXiv:2404.14219) and Phi-4: projections are stored fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.layers.linear import FusedLinear
from axion.layers.rotary import Length
from axion.models.base import MLP, Attention, CausalLM
from axion.models.config import Epsilon, Size, WindowConfig


@dataclass(kw_only=True)
class Phi3Config(WindowConfig):
    max_position_embeddings: Length = 4096
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = None

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        config = {"original_max_position_embeddings": 4096, **config}
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        rope = config.get(name)
        if isinstance(rope, dict):
            # Of Phi-3 both are names for longrope, from before it was called that.
            kind = rope.get("rope_type", rope.get("type"))
            config[name] = rope | ({"rope_type": "longrope"} if kind in ("su", "yarn") else {})
        return super()._derive(config)


class Phi3Attention(Attention):
    def __init__(self, config: Phi3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.qkv_proj = FusedLinear(config.hidden_size, self.qkv_proj.shards)


class Phi3MLP(MLP):
    def __init__(self, config: Phi3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.gate_up_proj = FusedLinear(config.hidden_size, self.gate_up_proj.shards)


class Phi3ForCausalLM(CausalLM):
    architectures = ("Phi3ForCausalLM",)
    config_cls = Phi3Config
    attention_cls = Phi3Attention
    mlp_cls = Phi3MLP
