"""dots.llm1 (arXiv:2506.05767): DeepSeek-V3's experts, and queries and keys normalised per head."""

from __future__ import annotations

from dataclasses import dataclass

from axion.models.base import HeadNormAttention
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


class Dots1ForCausalLM(SharedMoEForCausalLM):
    architectures = ("Dots1ForCausalLM",)
    config_cls = Dots1Config
    attention_cls = HeadNormAttention
