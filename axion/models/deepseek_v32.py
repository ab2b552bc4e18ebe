"""DeepSeek-V3.2 (arXiv:2512.02556): a DeepSeek-V3 that attends to the tokens that it chooses."""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.rotary import Length
from axion.models.config import Size
from axion.models.deepseek_v3 import DeepseekV3Config
from axion.models.sparse_mla import SparseMLAConfig, SparseMLAForCausalLM


@dataclass(kw_only=True)
class DeepseekV32Config(SparseMLAConfig, DeepseekV3Config):
    num_key_value_heads: Size | None = 128
    max_position_embeddings: Length = 163840


class DeepseekV32ForCausalLM(SparseMLAForCausalLM):
    architectures = ("DeepseekV32ForCausalLM",)
    config_cls = DeepseekV32Config
