"""GPT-NeoX and Pythia (arXiv:2204.06745): attention and MLP beside each other, each with a norm."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import Linear
from axion.layers.norm import LayerNorm
from axion.models.base import Attention, CausalLM, DecoderLayer, PlainMLP
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class GPTNeoXConfig(DecoderConfig):
    renamed_fields = (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta"))
    default_partial_rotary_factor = 0.25

    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_bias: bool = True
    mlp_bias: bool = True
    use_parallel_residual: bool = True

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.layer_norm_eps)


class GPTNeoXAttention(Attention):
    def __init__(self, config: GPTNeoXConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size = sum(self.qkv_proj.shards.values())
        self.qkv_proj = Linear(config.hidden_size, size, bias=config.attention_bias)

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Stored head by head, not all queries first.
        q, k, v = self.qkv_proj(hidden_states).unflatten(-1, (-1, 3, self.head_dim)).unbind(-2)
        return q, k, v


class GPTNeoXDecoderLayer(DecoderLayer):
    def __init__(
        self, config: GPTNeoXConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.is_parallel = config.use_parallel_residual

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        if not self.is_parallel:
            return super().forward(hidden_states, context)
        out = self.self_attn(self.input_layernorm(hidden_states), context)
        return hidden_states + out + self.mlp(self.post_attention_layernorm(hidden_states))


class GPTNeoXForCausalLM(CausalLM):
    architectures = ("GPTNeoXForCausalLM",)
    renamed_tensors = (
        (r"^gpt_neox\.", ""),
        (r"^embed_out\.", "lm_head."),
        (r"^embed_in\.", "embed_tokens."),
        (r"^final_layer_norm\.", "norm."),
        (r"\.attention\.query_key_value\.", ".self_attn.qkv_proj."),
        (r"\.attention\.dense\.", ".self_attn.o_proj."),
        (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
        *CausalLM.renamed_tensors,
    )
    ignored_tensors = (r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",)
    config_cls = GPTNeoXConfig
    attention_cls = GPTNeoXAttention
    mlp_cls = PlainMLP
    layer_cls = GPTNeoXDecoderLayer
