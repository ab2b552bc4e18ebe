"""Command A and R7B (arXiv:2504.00698): three layers with a window and rotary positions, to one
without either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from axion.layers.context import ForwardContext
from axion.models.cohere import CohereAttention, CohereConfig, CohereForCausalLM
from axion.models.config import Size, WindowConfig


@dataclass(kw_only=True)
class Cohere2Config(CohereConfig, WindowConfig):
    default_rope_theta = 10_000.0

    sliding_window_pattern: Size | None = 4
    position_embedding_type: Literal["rope_gptj"] | None = None


class Cohere2Attention(CohereAttention):
    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return (q, k) if self.window is None else super().rotate_qk(q, k, context)


class Cohere2ForCausalLM(CohereForCausalLM):
    architectures = ("Cohere2ForCausalLM",)
    config_cls = Cohere2Config
    attention_cls = Cohere2Attention
