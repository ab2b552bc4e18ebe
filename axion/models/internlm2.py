"""InternLM2 (arXiv:2403.17297): a Llama; a group of queries is stored with its key and value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from axion.layers.linear import Linear
from axion.models.base import Attention, CausalLM
from axion.models.config import DecoderConfig


@dataclass(kw_only=True)
class InternLM2Config(DecoderConfig):
    renamed_fields = (("bias", "attention_bias"),)


class InternLM2Attention(Attention):
    def __init__(self, config: InternLM2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.num_kv_heads = config.num_key_value_heads
        size = self.qkv_proj.out_features
        self.qkv_proj = Linear(config.hidden_size, size, bias=config.attention_bias)

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (self.num_kv_heads, -1, self.head_dim))
        return qkv[:, :, :-2].flatten(1, 2), qkv[:, :, -2], qkv[:, :, -1]


class InternLM2ForCausalLM(CausalLM):
    architectures = ("InternLM2ForCausalLM",)
    renamed_tensors = (
        (r"^model\.tok_embeddings\.", "model.embed_tokens."),
        (r"^output\.", "lm_head."),
        (r"\.attention\.wqkv\.", ".self_attn.qkv_proj."),
        (r"\.attention\.wo\.", ".self_attn.o_proj."),
        (r"\.attention_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
        (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
        (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
        *CausalLM.renamed_tensors,
    )
    config_cls = InternLM2Config
    attention_cls = InternLM2Attention
