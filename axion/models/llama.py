"""Llama (arXiv:2302.13971, arXiv:2407.21783): the standard decoder itself, and those that differ
from it in what they call things."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from axion.layers.norm import LayerNorm
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig


class LlamaForCausalLM(CausalLM):
    architectures = (
        "LlamaForCausalLM",
        "LLaMAForCausalLM",
        "AquilaForCausalLM",
        "AquilaModel",
        "XverseForCausalLM",
    )


@dataclass(kw_only=True)
class InternLMConfig(DecoderConfig):
    renamed_fields = (("bias", "attention_bias"),)

    attention_bias: bool = True


class InternLMForCausalLM(LlamaForCausalLM):
    """InternLM (Shanghai AI Laboratory, 2023)."""

    architectures = ("InternLMForCausalLM",)
    config_cls = InternLMConfig


@dataclass(kw_only=True)
class ExaoneConfig(DecoderConfig):
    renamed_fields = (
        ("num_layers", "num_hidden_layers"),
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("activation_function", "hidden_act"),
    )


class ExaoneForCausalLM(LlamaForCausalLM):
    """EXAONE 3 and 3.5 (arXiv:2412.04862)."""

    architectures = ("ExaoneForCausalLM",)
    renamed_tensors = (
        (r"^transformer\.wte\.", "model.embed_tokens."),
        (r"^transformer\.ln_f\.", "model.norm."),
        (r"^transformer\.h\.", "model.layers."),
        (r"\.attn\.attention\.out_proj\.", ".self_attn.o_proj."),
        (r"\.attn\.attention\.", ".self_attn."),
        (r"\.ln_1\.", ".input_layernorm."),
        (r"\.ln_2\.", ".post_attention_layernorm."),
        (r"\.mlp\.c_fc_0\.", ".mlp.gate_proj."),
        (r"\.mlp\.c_fc_1\.", ".mlp.up_proj."),
        (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
    )
    ignored_tensors = (*LlamaForCausalLM.ignored_tensors, r".*\.rotary\.inv_freq")
    config_cls = ExaoneConfig


@dataclass(kw_only=True)
class OrionConfig(DecoderConfig):
    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.rms_norm_eps)


class OrionForCausalLM(LlamaForCausalLM):
    """Orion (arXiv:2401.12246): layer norms."""

    architectures = ("OrionForCausalLM",)
    config_cls = OrionConfig
