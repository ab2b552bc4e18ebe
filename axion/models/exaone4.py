"""EXAONE 4 (arXiv:2507.11407): norms behind attention and MLP, and of queries and keys per head;
where some layers have a window, only those have rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.norm import RMSNorm
from axion.models.base import Attention
from axion.models.config import Epsilon, Size, WindowConfig
from axion.models.olmo2 import Olmo2ForCausalLM


@dataclass(kw_only=True)
class Exaone4Config(WindowConfig):
    """`sliding_window_pattern` may be written out, as "LLLG"."""

    rms_norm_eps: Epsilon = 1e-5
    sliding_window_pattern: Size | None = 4

    @property
    def output_bias(self) -> bool:
        return False

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        pattern = config.get("sliding_window_pattern")
        if isinstance(pattern, str):
            derived["sliding_window_pattern"] = len(pattern)
        elif not pattern and "sliding_window_pattern" in config:
            derived["sliding_window_pattern"] = None
        return derived, sources


class Exaone4Attention(Attention):
    def __init__(self, config: Exaone4Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.has_rope = config.sliding_window is None or config.is_sliding(layer_idx)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return super().rotate_qk(q, k, context) if self.has_rope else (q, k)


class Exaone4ForCausalLM(Olmo2ForCausalLM):
    architectures = ("Exaone4ForCausalLM",)
    config_cls = Exaone4Config
    attention_cls = Exaone4Attention
