"""SmolLM3 (Hugging Face, 2025): some layers have no rotary positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM
from axion.models.config import Size, SwitchedWindowConfig


@dataclass(kw_only=True)
class SmolLM3Config(SwitchedWindowConfig):
    """
    Attributes:
        no_rope_layers: 0 for each layer without, 1 for each with rotary positions; by default
            each `no_rope_layer_interval`th is without.
    """

    default_rope_theta = 2_000_000.0

    num_key_value_heads: Size | None = 4
    max_position_embeddings: Length = 32768
    tie_word_embeddings: bool = True
    sliding_window: Size | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.no_rope_layers is None:
            interval = self.no_rope_layer_interval
            self.no_rope_layers = [
                int((i + 1) % interval != 0) for i in range(self.num_hidden_layers)
            ]
        if len(self.no_rope_layers) < self.num_hidden_layers:
            raise ValueError("no_rope_layers must have one entry for each layer")

    def is_sliding(self, layer_idx: int) -> bool:
        if self.layer_types is not None:
            return super().is_sliding(layer_idx)
        return not self.no_rope_layers[layer_idx]


class SmolLM3Attention(Attention):
    def __init__(self, config: SmolLM3Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.has_rope = bool(config.no_rope_layers[layer_idx])

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return super().rotate_qk(q, k, context) if self.has_rope else (q, k)


class SmolLM3ForCausalLM(CausalLM):
    architectures = ("SmolLM3ForCausalLM",)
    config_cls = SmolLM3Config
    attention_cls = SmolLM3Attention
