"""Gemma 3 (arXiv:2503.19786): five layers with a window, and a rotary embedding of their own, to
one without; queries and keys are normalised per head.
"""

from __future__ import annotations

from dataclasses import dataclass

from axion.layers.norm import OffsetRMSNorm
from axion.layers.rotary import Length, Positive
from axion.models.base import HeadNormAttention
from axion.models.config import LocalRopeConfig, NumLayers, Size
from axion.models.gemma2 import Gemma2Attention, Gemma2Config, Gemma2ForCausalLM


@dataclass(kw_only=True)
class Gemma3TextConfig(Gemma2Config, LocalRopeConfig):
    """Published configurations leave out what is as in the smallest model that sees."""

    default_rope_theta = 1_000_000.0
    default_local_rope_theta = 10_000.0

    vocab_size: Size = 262_208
    hidden_size: Size = 2304
    intermediate_size: Size = 9216
    num_hidden_layers: NumLayers = 26
    num_attention_heads: Size = 8
    max_position_embeddings: Length = 131_072
    sliding_window_pattern: Size | None = 6
    attn_logit_softcapping: None = None
    final_logit_softcapping: Positive | None = None


class Gemma3Attention(HeadNormAttention, Gemma2Attention):
    norm_cls = OffsetRMSNorm


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    architectures = ("Gemma3ForCausalLM",)
    config_cls = Gemma3TextConfig
    attention_cls = Gemma3Attention
