"""Qwen2 and Qwen2.5 (arXiv:2407.10671): queries, keys and values are biased."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.base import CausalLM
from axion.models.config import Index, SwitchedWindowConfig


@dataclass(kw_only=True)
class Qwen2Config(SwitchedWindowConfig):
    max_position_embeddings: Length = 32768
    attention_bias: bool = True

    @property
    def output_bias(self) -> bool:
        return False


class Qwen2ForCausalLM(CausalLM):
    architectures = ("Qwen2ForCausalLM",)
    config_cls = Qwen2Config


@dataclass(kw_only=True)
class MiMoConfig(Qwen2Config):
    """
    Attributes:
        num_nextn_predict_layers: layers behind the last, which guess more tokens; not read.
    """

    num_nextn_predict_layers: Index = 0


class MiMoForCausalLM(Qwen2ForCausalLM):
    """MiMo (arXiv:2505.07608)."""

    architectures = ("MiMoForCausalLM",)
    ignored_tensors = (*Qwen2ForCausalLM.ignored_tensors, r"model\.mtp_layers\..*")
    config_cls = MiMoConfig
