"""Mamba-2 (state space duality, arXiv:2405.21060), alone and in the hybrids that have it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec, StateTensor
from axion.layers.conv import CausalConv1d
from axion.layers.linear import Linear
from axion.layers.linear_attention import fading_attention
from axion.layers.norm import GroupRMSNorm
from axion.layers.state import scan
from axion.models.config import Size
from axion.models.hybrid import HybridConfig, whole_number

Limits = Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]


@dataclass(kw_only=True)
class Mamba2Config(HybridConfig):
    """The fields of Mamba-2 layers.

    Attributes:
        mamba_d_head: `mamba_expand` times the hidden size in all, where it is "auto".
        mamba_hidden_act: behind the convolution; `hidden_act` by default.
        time_step_limit: smallest and largest step. transformers has it for prompts only; here a
            token is computed the same wherever it stands.
    """

    mamba_n_heads: Size = 128
    mamba_d_head: Size
    mamba_n_groups: Size = 1
    mamba_d_state: Size = 256
    mamba_d_conv: Size = 4
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_hidden_act: str | None = None
    time_step_limit: Limits = field(default_factory=lambda: [0.0, inf])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mamba_n_heads % self.mamba_n_groups:
            raise ValueError(
                f"mamba_n_heads ({self.mamba_n_heads}) must be a multiple of mamba_n_groups "
                f"({self.mamba_n_groups})"
            )

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if config.get("mamba_d_head", "auto") == "auto":
            num_heads = whole_number(config, "mamba_n_heads", cls.mamba_n_heads)
            size = whole_number(config, "mamba_expand", 2) * whole_number(config, "hidden_size", 0)
            size = whole_number(config, "mamba_d_ssm", size)
            derived["mamba_d_head"] = size // (num_heads or 1)
        limit = config.get("time_step_limit")
        if isinstance(limit, list | tuple):  # JSON has no infinity
            infinity = ({"__float__": "Infinity"}, "inf", None)
            derived["time_step_limit"] = [inf if end in infinity else end for end in limit]
        elif limit is None:
            derived["time_step_limit"] = [0.0, inf]
        return derived, sources | {"mamba_expand", "mamba_chunk_size"}


class Mamba2Mixer(nn.Module):
    """A state for each head, which fades by a step that each token chooses."""

    kv_cache_spec: ClassVar[KVCacheSpec] = NO_KV_CACHE

    def __init__(self, config: Mamba2Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads, self.head_dim = config.mamba_n_heads, config.mamba_d_head
        self.state_size = config.mamba_d_state
        self.time_step_limit = config.time_step_limit
        self.size = self.num_heads * self.head_dim
        self.group_size = config.mamba_n_groups * self.state_size
        conv_size = self.size + 2 * self.group_size
        self.in_proj = Linear(
            config.hidden_size,
            self.size + conv_size + self.num_heads,
            bias=config.mamba_proj_bias,
        )
        self.conv1d = CausalConv1d(
            conv_size,
            config.mamba_d_conv,
            get_activation(config.mamba_hidden_act or config.hidden_act),
            bias=config.mamba_conv_bias,
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads), requires_grad=False)
        self.A_log = nn.Parameter(torch.empty(self.num_heads), requires_grad=False)
        self.D = nn.Parameter(torch.empty(self.num_heads), requires_grad=False)
        self.norm = self.gated_norm(config)
        self.out_proj = Linear(self.size, config.hidden_size, bias=config.mamba_proj_bias)
        self.state_spec = {
            "conv": self.conv1d.state,
            "ssm": StateTensor((self.num_heads, self.state_size, self.head_dim), torch.float32),
        }

    def gated_norm(self, config: Mamba2Config) -> nn.Module:
        """What the output and its gate, `[num_tokens, size]` each, pass before the projection."""
        return GroupRMSNorm(self.size, config.rms_norm_eps, num_groups=config.mamba_n_groups)

    def project(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, hidden_size]` to gates, inputs of the convolution and steps."""
        return self.in_proj(hidden_states)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        state = context.states[self.layer_idx]
        gate, x, dt = self.project(hidden_states).split(
            (self.size, self.size + 2 * self.group_size, self.num_heads), dim=-1
        )
        x, b, c = self.conv1d(x, state["conv"], context).split(
            (self.size, self.group_size, self.group_size), dim=-1
        )
        x = x.unflatten(-1, (-1, self.head_dim)).float()
        b, c = (part.unflatten(-1, (-1, self.state_size)) for part in (b, c))
        dt = F.softplus(dt.float() + self.dt_bias).clamp(*self.time_step_limit)
        log_decay = -self.A_log.float().exp() * dt
        out = scan(fading_attention, state["ssm"], (c, b, x * dt[..., None], log_decay), context)
        out = (out + x * self.D.float()[:, None]).flatten(1)
        return self.out_proj(self.norm(out, gate).to(hidden_states.dtype))
