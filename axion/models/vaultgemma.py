"""VaultGemma (arXiv:2510.15001): a Gemma 2 without the norms behind attention and MLP."""

from __future__ import annotations

from axion.models.base import DecoderLayer
from axion.models.gemma2 import Gemma2ForCausalLM


class VaultGemmaForCausalLM(Gemma2ForCausalLM):
    architectures = ("VaultGemmaForCausalLM",)
    renamed_tensors = (
        *Gemma2ForCausalLM.renamed_tensors,
        (r"\.pre_feedforward_layernorm\.", ".post_attention_layernorm."),
    )
    layer_cls = DecoderLayer
