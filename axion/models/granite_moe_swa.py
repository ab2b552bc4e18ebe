"""Granite with windows and experts (IBM, 2026)."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.config import Epsilon, Size
from axion.models.granite_moe import GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM
from axion.models.granite_swa import GraniteSWAAttention, GraniteSWAConfig


@dataclass(kw_only=True)
class GraniteMoeSWAConfig(GraniteMoeSharedConfig, GraniteSWAConfig):
    num_key_value_heads: Size | None = None
    max_position_embeddings: Length = 2048
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False


class GraniteMoeSWAForCausalLM(GraniteMoeSharedForCausalLM):
    architectures = ("GraniteMoeSWAForCausalLM",)
    config_cls = GraniteMoeSWAConfig
    attention_cls = GraniteSWAAttention
