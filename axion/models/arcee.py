"""Arcee (AFM, 2025): the MLP has no gate, and a squared ReLU."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.base import CausalLM, PlainMLP
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class ArceeConfig(DecoderConfig):
    hidden_act: str = "relu2"
    max_position_embeddings: Length = 4096
    rms_norm_eps: Epsilon = 1e-5


class ArceeForCausalLM(CausalLM):
    architectures = ("ArceeForCausalLM",)
    config_cls = ArceeConfig
    mlp_cls = PlainMLP
