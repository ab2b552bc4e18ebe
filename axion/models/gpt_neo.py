"""GPT-Neo (Black et al., 2021): a GPT-2 with unscaled scores and a window in some layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext
from axion.layers.rotary import Length
from axion.models.base import Attention, PlainMLP
from axion.models.config import GPTConfig, NumLayers, Size
from axion.models.gpt2 import GPT2LMHeadModel

_Types = list[tuple[list[str], NumLayers]]
_TYPES = [[["global", "local"], 12]]


@dataclass(kw_only=True)
class GPTNeoConfig(GPTConfig):
    """
    Attributes:
        attention_layers: the kind of each; `attention_types` in config.json, which says how often
            some kinds follow each other.
        window_size: of the local layers.
    """

    renamed_fields = (
        ("num_layers", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
        ("activation_function", "hidden_act"),
    )

    max_position_embeddings: Length = 2048
    mlp_bias: bool = True
    tie_word_embeddings: bool = True
    attention_layers: list[Literal["global", "local"]]
    window_size: Size = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.attention_layers) != self.num_hidden_layers:
            raise ValueError(
                f"attention_types must name {self.num_hidden_layers} layers, not "
                f"{len(self.attention_layers)}"
            )

    @property
    def output_bias(self) -> bool:
        return True

    def window(self, layer_idx: int) -> int | None:
        return self.window_size if self.attention_layers[layer_idx] == "local" else None

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        try:
            types = msgspec.convert(config.get("attention_types") or _TYPES, _Types)
        except msgspec.ValidationError as error:
            raise ModelLoadError(f"config.json: attention_types: {error}.") from None
        layers = [kind for kinds, times in types for _ in range(times) for kind in kinds]
        return derived | {"attention_layers": layers}, sources | {"attention_types"}


class GPTNeoAttention(Attention):
    def __init__(self, config: GPTNeoConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.scale = 1.0

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class GPTNeoForCausalLM(GPT2LMHeadModel):
    architectures = ("GPTNeoForCausalLM",)
    renamed_tensors = (
        *GPT2LMHeadModel.renamed_tensors,
        (r"\.attn\.attention\.out_proj\.", ".self_attn.o_proj."),
        (r"\.attn\.attention\.", ".self_attn."),
    )
    ignored_tensors = (r".*\.self_attn\.(bias|masked_bias)",)
    config_cls = GPTNeoConfig
    attention_cls = GPTNeoAttention
    mlp_cls = PlainMLP
