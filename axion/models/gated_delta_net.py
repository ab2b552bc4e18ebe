"""Gated DeltaNet (arXiv:2412.06464), the linear attention of Qwen3-Next and those after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec, StateTensor
from axion.layers.conv import CausalConv1d
from axion.layers.gated_delta import gated_delta_rule, normalized
from axion.layers.linear import Linear
from axion.layers.norm import GatedRMSNorm
from axion.layers.state import scan
from axion.models.config import Size
from axion.models.hybrid import HybridConfig


@dataclass(kw_only=True)
class GatedDeltaNetConfig(HybridConfig):
    """The fields of Gated DeltaNet layers; a query and a key are for several values each.

    Attributes:
        linear_value_heads_tiled: the value heads of a key head are not together, but each round of
            them is for all key heads, as GGUF files have it.
    """

    linear_conv_kernel_dim: Size = 4
    linear_key_head_dim: Size = 128
    linear_value_head_dim: Size = 128
    linear_num_key_heads: Size = 16
    linear_num_value_heads: Size = 32
    linear_value_heads_tiled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"linear_num_value_heads ({self.linear_num_value_heads}) must be a multiple of "
                f"linear_num_key_heads ({self.linear_num_key_heads})"
            )


class Projected(NamedTuple):
    """What becomes of hidden states.

    Attributes:
        qkv: `[num_tokens, 2 * key_size + value_size]`.
        gate: `[num_tokens, value_size]`.
        beta: `[num_tokens, num_value_heads]`.
        decay: as `GatedDeltaNet.log_decay` takes it, here likewise.
    """

    qkv: Tensor
    gate: Tensor
    beta: Tensor
    decay: Tensor


class GatedDeltaNet(nn.Module, ABC):
    """Linear attention over a state that fades and is corrected."""

    kv_cache_spec: ClassVar[KVCacheSpec] = NO_KV_CACHE

    def __init__(self, config: GatedDeltaNetConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        num_heads = config.linear_num_value_heads
        self.k_dim, self.v_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.key_size = config.linear_num_key_heads * self.k_dim
        self.value_size = num_heads * self.v_dim
        self.values_per_key = num_heads // config.linear_num_key_heads
        self.is_tiled = config.linear_value_heads_tiled
        self.conv1d = CausalConv1d(
            2 * self.key_size + self.value_size,
            config.linear_conv_kernel_dim,
            get_activation(config.hidden_act),
        )
        self.dt_bias = nn.Parameter(torch.empty(num_heads), requires_grad=False)
        self.A_log = nn.Parameter(torch.empty(num_heads), requires_grad=False)
        self.norm = GatedRMSNorm(self.v_dim, config.rms_norm_eps)
        self.o_proj = Linear(self.value_size, config.hidden_size)
        self.state_spec = {
            "conv": self.conv1d.state,
            "recurrent": StateTensor((num_heads, self.k_dim, self.v_dim), torch.float32),
        }

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        state = context.states[self.layer_idx]
        qkv, gate, beta, decay = self.project(hidden_states)
        qkv = self.conv1d(qkv, state["conv"], context)
        q, k, v = qkv.split((self.key_size, self.key_size, self.value_size), dim=-1)
        q, k = (self.for_values(normalized(x.unflatten(-1, (-1, self.k_dim)))) for x in (q, k))
        v = v.unflatten(-1, (-1, self.v_dim))
        out = scan(
            gated_delta_rule,
            state["recurrent"],
            (q * self.k_dim**-0.5, k, v, self.log_decay(decay), self.correction(beta)),
            context,
        )
        out = self.norm(out.to(hidden_states.dtype), gate.unflatten(-1, (-1, self.v_dim)))
        return self.o_proj(out.flatten(1))

    def for_values(self, x: Tensor) -> Tensor:
        """`[num_tokens, num_key_heads, k_dim]` to one for each value head."""
        if self.is_tiled:
            return x.repeat(1, self.values_per_key, 1)
        return x.repeat_interleave(self.values_per_key, 1)

    def log_decay(self, decay: Tensor) -> Tensor:
        """How fast the state fades, as `gated_delta_rule` takes it."""
        return -self.A_log.float().exp() * F.softplus(decay.float() + self.dt_bias)

    def correction(self, beta: Tensor) -> Tensor:
        """What share of its error a key is corrected by."""
        return beta.float().sigmoid()

    @abstractmethod
    def project(self, hidden_states: Tensor) -> Projected:
        """Hidden states `[num_tokens, hidden_size]` to all that is made of them."""
