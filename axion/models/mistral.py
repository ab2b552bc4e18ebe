"""Mistral (arXiv:2310.06825): all layers attend to a window, or none does."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.base import CausalLM
from axion.models.config import Size, WindowConfig


@dataclass(kw_only=True)
class MistralConfig(WindowConfig):
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 131072


class MistralForCausalLM(CausalLM):
    """Also Ministral, in which `layer_types` says which layers do."""

    architectures = ("MistralForCausalLM", "MinistralForCausalLM")
    config_cls = MistralConfig
