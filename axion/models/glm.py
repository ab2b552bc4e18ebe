"""GLM-4 (arXiv:2406.12793) and GLM-4-0414: half of each head is rotated, neighbours as pairs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import FusedLinear
from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.base import MLP, Attention, CausalLM, DecoderLayer
from axion.models.config import DecoderConfig, Epsilon, Size


@dataclass(kw_only=True)
class GlmConfig(DecoderConfig):
    default_partial_rotary_factor = 0.5

    num_key_value_heads: Size | None = 2
    head_dim: Size | None = 128
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1.5625e-7
    attention_bias: bool = True

    @property
    def output_bias(self) -> bool:
        return False


class GlmAttention(Attention):
    apply_rotary = staticmethod(apply_rotary_interleaved)


class GlmMLP(MLP):
    def __init__(self, config: GlmConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.gate_up_proj = FusedLinear(config.hidden_size, self.gate_up_proj.shards)


class GlmForCausalLM(CausalLM):
    architectures = ("GlmForCausalLM",)
    config_cls = GlmConfig
    attention_cls = GlmAttention
    mlp_cls = GlmMLP


class Glm4DecoderLayer(DecoderLayer):
    """Attention and MLP have a norm behind them too."""

    def __init__(
        self, config: GlmConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.post_self_attn_layernorm = config.norm()
        self.post_mlp_layernorm = config.norm()

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        out = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.post_self_attn_layernorm(out)
        out = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.post_mlp_layernorm(out)


class Glm4ForCausalLM(GlmForCausalLM):
    architectures = ("Glm4ForCausalLM",)
    layer_cls = Glm4DecoderLayer
