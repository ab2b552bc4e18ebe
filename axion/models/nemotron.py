"""Nemotron-4 and Minitron (arXiv:2402.16819): layer norms around 1, squared ReLU without a gate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.norm import LayerNorm
from axion.layers.rotary import Length
from axion.models.base import CausalLM, PlainMLP
from axion.models.config import DecoderConfig, Epsilon


class LayerNorm1P(LayerNorm):
    """Layer norm that stores its weight less 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight + 1.0)


@dataclass(kw_only=True)
class NemotronConfig(DecoderConfig):
    default_partial_rotary_factor = 0.5

    hidden_act: str = "relu2"
    max_position_embeddings: Length = 4096
    norm_eps: Epsilon = 1e-5

    def norm(self) -> nn.Module:
        return LayerNorm1P(self.hidden_size, self.norm_eps)


class NemotronForCausalLM(CausalLM):
    architectures = ("NemotronForCausalLM",)
    config_cls = NemotronConfig
    mlp_cls = PlainMLP
