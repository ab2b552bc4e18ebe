"""OLMo 2 (arXiv:2501.00656): norms behind attention and MLP, and over all queries and all keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.norm import RMSNorm
from axion.models.base import Attention, CausalLM, DecoderLayer
from axion.models.config import DecoderConfig, Epsilon


@dataclass(kw_only=True)
class Olmo2Config(DecoderConfig):
    rms_norm_eps: Epsilon = 1e-5


class Olmo2Attention(Attention):
    def __init__(self, config: Olmo2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        query_size, key_size, _ = self.qkv_proj.shards.values()
        self.q_norm = RMSNorm(query_size, config.rms_norm_eps)
        self.k_norm = RMSNorm(key_size, config.rms_norm_eps)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q.flatten(1)).view_as(q), self.k_norm(k.flatten(1)).view_as(k)


class Olmo2DecoderLayer(DecoderLayer):
    def __init__(
        self, config: Olmo2Config, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        del self.input_layernorm
        self.post_feedforward_layernorm = config.norm()

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        out = self.self_attn(hidden_states, context)
        hidden_states = hidden_states + self.post_attention_layernorm(out)
        return hidden_states + self.post_feedforward_layernorm(self.mlp(hidden_states))


class Olmo2ForCausalLM(CausalLM):
    architectures = ("Olmo2ForCausalLM",)
    config_cls = Olmo2Config
    attention_cls = Olmo2Attention
    layer_cls = Olmo2DecoderLayer
