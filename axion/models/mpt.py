"""MPT (MosaicML, 2023): no positions but a bias on scores, and no biases of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.alibi import alibi_slopes
from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.norm import LayerNorm
from axion.layers.rotary import Positive
from axion.models.base import Attention, CausalLM, PlainMLP
from axion.models.config import BaseConfig, GPTConfig


@dataclass(kw_only=True)
class MptAttentionConfig(BaseConfig):
    """`attn_config` in config.json.

    Attributes:
        softmax_scale: factor on the scores; `head_dim ** -0.5` by default.
        alibi_bias_max: see `axion.layers.alibi.alibi_slopes`; 16 in MPT-7B-StoryWriter.
            transformers reads it and takes 8 whatever it says.
    """

    attn_type: Literal["multihead_attention"] = "multihead_attention"
    clip_qkv: float | None = None
    softmax_scale: float | None = None
    alibi: Literal[True] = True
    alibi_bias_max: Positive = 8
    prefix_lm: Literal[False] = False
    qk_ln: Literal[False] = False
    attn_uses_sequence_id: Literal[False] = False
    # How it is computed, and while training.
    attn_impl: str = "torch"
    attn_pdrop: float = 0


@dataclass(kw_only=True)
class MptConfig(GPTConfig):
    """
    Attributes:
        learned_pos_emb: of models without ALiBi.
        attention: `attn_config` in config.json.
    """

    renamed_fields = (
        ("d_model", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("max_seq_len", "max_position_embeddings"),
    )

    hidden_act: str = "gelu"
    tie_word_embeddings: bool = True
    expansion_ratio: Literal[4] = 4
    no_bias: Literal[True] = True
    norm_type: Literal["low_precision_layernorm", "layernorm"] = "low_precision_layernorm"
    learned_pos_emb: bool = True
    attention: MptAttentionConfig

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.layer_norm_epsilon, bias=False)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        # The MLP's width is no field.
        derived, sources = super()._derive(config | {"intermediate_size": None})
        fields = config.get("attn_config") or {}
        if not isinstance(fields, dict):
            raise ModelLoadError(f"config.json: attn_config must be an object, got {fields!r:.80}.")
        attention = MptAttentionConfig.from_dict(fields)
        return derived | {"attention": attention}, sources | {"attn_config"}


class MptAttention(Attention):
    def __init__(self, config: MptConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        attention = config.attention
        self.qkv_proj = Linear(config.hidden_size, self.qkv_proj.out_features)
        self.limit = attention.clip_qkv
        if attention.softmax_scale is not None:
            self.scale = attention.softmax_scale
        self.alibi_slopes = alibi_slopes(config.num_attention_heads, attention.alibi_bias_max)

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv_proj(hidden_states)
        if self.limit:
            qkv = qkv.clamp(-self.limit, self.limit)
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        return q, k, v

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class MptForCausalLM(CausalLM):
    architectures = ("MptForCausalLM", "MPTForCausalLM")
    renamed_tensors = (
        (r"^(transformer\.)?wte\.", "model.embed_tokens."),
        (r"^(transformer\.)?norm_f\.", "model.norm."),
        (r"^(transformer\.)?blocks\.", "model.layers."),
        (r"\.norm_1\.", ".input_layernorm."),
        (r"\.norm_2\.", ".post_attention_layernorm."),
        (r"\.attn\.Wqkv\.", ".self_attn.qkv_proj."),
        (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
        (r"\.ffn\.", ".mlp."),
    )
    config_cls = MptConfig
    attention_cls = MptAttention
    mlp_cls = PlainMLP
