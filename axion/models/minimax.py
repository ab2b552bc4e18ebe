"""MiniMax-01 (arXiv:2501.08313): a Mixtral some of whose layers are lightning attention, and whose
residual connections begin behind the norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec, StateTensor
from axion.layers.linear import Linear
from axion.layers.linear_attention import fading_attention
from axion.layers.norm import RMSNorm
from axion.layers.rotary import Length
from axion.layers.state import scan
from axion.models.base import Attention, DecoderLayer
from axion.models.config import Epsilon, NumExperts, Size
from axion.models.hybrid import HybridConfig, HybridForCausalLM, num_layers
from axion.models.mixtral import MixtralForCausalLM
from axion.models.moe import MoEConfig

# Of the norm behind lightning attention, whatever rms_norm_eps says.
_OUTPUT_EPS = 1e-6


@dataclass(kw_only=True)
class MiniMaxConfig(HybridConfig, MoEConfig):
    """
    Attributes:
        sliding_window: tokens that a token attends to in the other layers; None: all.
        full_attn_alpha_factor, linear_attn_alpha_factor, mlp_alpha_factor: on what goes around
            attention, lightning attention and experts; `beta`: on what they return.
    """

    default_rope_theta = 1_000_000.0

    num_key_value_heads: Size | None = 8
    max_position_embeddings: Length = 131072
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: Size | None = None
    num_experts: NumExperts = 8
    num_experts_per_tok: NumExperts = 2
    norm_topk_prob: bool = True
    full_attn_alpha_factor: float = 1.0
    full_attn_beta_factor: float = 1.0
    linear_attn_alpha_factor: float = 1.0
    linear_attn_beta_factor: float = 1.0
    mlp_alpha_factor: float = 1.0
    mlp_beta_factor: float = 1.0

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Without `layer_types` every other layer is attention."""
        derived, sources = super()._derive(config)
        if config.get("layer_types") is None:
            derived["layer_types"] = [
                "linear_attention" if i % 2 else "full_attention" for i in range(num_layers(config))
            ]
        return derived, sources | {"block_size"}

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window


class LightningAttention(nn.Module):
    """Linear attention over a state that fades at a rate of each head's own (arXiv:2401.04658)."""

    kv_cache_spec: ClassVar[KVCacheSpec] = NO_KV_CACHE

    def __init__(self, config: MiniMaxConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        # No layer forgets nothing at all, and a model may have one layer only.
        depth = layer_idx / (config.num_hidden_layers - 1 + 1e-5) - 1e-5
        steps = torch.arange(1, self.num_heads + 1, dtype=torch.float32, device="cpu")
        log_decay = (depth - 1) * 2.0 ** (-8 / self.num_heads * steps)
        self.register_buffer("log_decay", log_decay, persistent=False)
        size = self.num_heads * self.head_dim
        self.qkv_proj = Linear(config.hidden_size, 3 * size)
        self.activation = get_activation(config.hidden_act)
        self.norm = RMSNorm(size, _OUTPUT_EPS)
        self.output_gate = Linear(config.hidden_size, size)
        self.out_proj = Linear(size, config.hidden_size)
        self.state_spec = {
            "kv": StateTensor((self.num_heads, self.head_dim, self.head_dim), torch.float32)
        }

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        qkv = self.activation(self.qkv_proj(hidden_states))
        q, k, v = qkv.unflatten(-1, (self.num_heads, 3, self.head_dim)).unbind(2)
        log_decay = self.log_decay.expand(len(q), -1)
        state = context.states[self.layer_idx]["kv"]
        out = scan(fading_attention, state, (q, k, v, log_decay), context)
        out = self.norm(out.flatten(1).to(hidden_states.dtype))
        return self.out_proj(self.output_gate(hidden_states).sigmoid() * out)


class MiniMaxDecoderLayer(DecoderLayer):
    """What goes around a block is what the block reads, and both have factors."""

    def __init__(
        self, config: MiniMaxConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.mlp_factors = config.mlp_alpha_factor, config.mlp_beta_factor
        if config.layer_types[layer_idx] == "linear_attention":
            self.factors = config.linear_attn_alpha_factor, config.linear_attn_beta_factor
        else:
            self.factors = config.full_attn_alpha_factor, config.full_attn_beta_factor

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        alpha, beta = self.factors
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = alpha * hidden_states + beta * self.self_attn(hidden_states, context)
        alpha, beta = self.mlp_factors
        hidden_states = self.post_attention_layernorm(hidden_states)
        return alpha * hidden_states + beta * self.mlp(hidden_states)


class MiniMaxForCausalLM(HybridForCausalLM, MixtralForCausalLM):
    architectures = ("MiniMaxForCausalLM",)
    # The rates, and what they make of blocks of tokens.
    ignored_tensors = (
        *MixtralForCausalLM.ignored_tensors,
        r".*\.self_attn\.(slope_rate|(query|key|diagonal)_decay)",
    )
    config_cls = MiniMaxConfig
    layer_cls = MiniMaxDecoderLayer
    mixers = (("full_attention", Attention), ("linear_attention", LightningAttention))
    config: MiniMaxConfig
