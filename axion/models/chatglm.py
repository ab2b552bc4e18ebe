"""ChatGLM2, ChatGLM3 and GLM-4 as they were first published (arXiv:2406.12793): a GLM under other
names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from axion.layers.rotary import Length
from axion.models.config import Epsilon, Size
from axion.models.glm import GlmConfig, GlmForCausalLM


@dataclass(kw_only=True)
class ChatGLMConfig(GlmConfig):
    """
    Attributes:
        rope_ratio: the rope's base is 10,000 times as much.
        add_qkv_bias: of queries, keys and values.
    """

    renamed_fields = (
        ("num_layers", "num_hidden_layers"),
        ("padded_vocab_size", "vocab_size"),
        ("ffn_hidden_size", "intermediate_size"),
        ("kv_channels", "head_dim"),
        ("layernorm_epsilon", "rms_norm_eps"),
        ("seq_length", "max_position_embeddings"),
        ("add_qkv_bias", "attention_bias"),
        ("add_bias_linear", "mlp_bias"),
    )

    max_position_embeddings: Length = 2048
    rms_norm_eps: Epsilon = 1e-5
    attention_bias: bool = False
    mlp_bias: Literal[False] = False
    multi_query_attention: bool = False
    multi_query_group_num: Size = 1
    rmsnorm: Literal[True] = True
    post_layer_norm: Literal[True] = True
    apply_residual_connection_post_layernorm: Literal[False] = False

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        ratio = config.get("rope_ratio", 1)
        if isinstance(ratio, int | float):
            config = config | {"rope_theta": 10_000.0 * ratio}
        derived, sources = super()._derive(config)
        shares = config.get("multi_query_attention", False)
        derived["num_key_value_heads"] = (
            config.get("multi_query_group_num", 1) if shares else config.get("num_attention_heads")
        )
        # Said of training, or of how sums are rounded.
        return derived, sources | {
            *("rope_ratio", "original_rope", "bias_dropout_fusion", "fp32_residual_connection"),
            *("apply_query_key_layer_scaling", "attention_softmax_in_fp32", "pre_seq_len"),
            *("prefix_projection", "quantization_bit", "interleaved_qkv", "classifier_dropout"),
        }


class ChatGLMModel(GlmForCausalLM):
    architectures = ("ChatGLMModel", "ChatGLMForConditionalGeneration")
    renamed_tensors = (
        (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
        (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
        (r"^transformer\.encoder\.layers\.", "model.layers."),
        (r"^transformer\.output_layer\.", "lm_head."),
        (r"\.self_attention\.query_key_value\.", ".self_attn.qkv_proj."),
        (r"\.self_attention\.dense\.", ".self_attn.o_proj."),
        (r"\.mlp\.dense_h_to_4h\.", ".mlp.gate_up_proj."),
        (r"\.mlp\.dense_4h_to_h\.", ".mlp.down_proj."),
    )
    ignored_tensors = (*GlmForCausalLM.ignored_tensors, r"transformer\.rotary_pos_emb\.inv_freq")
    config_cls = ChatGLMConfig
