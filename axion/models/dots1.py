"""dots.llm1 (arXiv:2506.05767): DeepSeek-V3's experts, and queries and keys normalised per head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from axion.layers.norm import RMSNorm
from axion.models.base import Attention
from axion.models.config import Index, Size, WindowConfig
from axion.models.moe import SharedMoEConfig, SharedMoEForCausalLM


@dataclass(kw_only=True)
class Dots1Config(WindowConfig, SharedMoEConfig):
    """
    Attributes:
        max_window_layers: without `layer_types`, the layers from there on attend to a window.
    """

    moe_intermediate_size: Size = 1408
    max_window_layers: Index = 62

    def is_sliding(self, layer_idx: int) -> bool:
        if self.layer_types is not None:
            return super().is_sliding(layer_idx)
        return layer_idx >= self.max_window_layers


class Dots1Attention(Attention):
    def __init__(self, config: Dots1Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Dots1ForCausalLM(SharedMoEForCausalLM):
    architectures = ("Dots1ForCausalLM",)
    config_cls = Dots1Config
    attention_cls = Dots1Attention
