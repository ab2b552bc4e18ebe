"""Qwen2 and Qwen2.5 (arXiv:2407.10671): queries, keys and values are biased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.layers.rotary import Length
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig


@dataclass(kw_only=True)
class Qwen2Config(DecoderConfig):
    max_position_embeddings: Length = 32768
    attention_bias: bool = True

    @property
    def output_bias(self) -> bool:
        return False

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if not config.get("use_sliding_window"):
            sources = sources | {"sliding_window"}
        return derived, sources


class Qwen2ForCausalLM(CausalLM):
    architectures = ("Qwen2ForCausalLM",)
    config_cls = Qwen2Config
