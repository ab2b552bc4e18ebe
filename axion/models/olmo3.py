"""OLMo 3 (arXiv:2512.13961): OLMo 2 with a window on three layers of four."""

from __future__ import annotations

from dataclasses import dataclass

from axion.models.config import LocalRopeConfig, Size
from axion.models.olmo2 import Olmo2Config, Olmo2ForCausalLM


@dataclass(kw_only=True)
class Olmo3Config(Olmo2Config, LocalRopeConfig):
    default_rope_theta = 500_000.0

    sliding_window_pattern: Size | None = 4


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    architectures = ("Olmo3ForCausalLM",)
    config_cls = Olmo3Config
