"""Mamba (arXiv:2312.00752), alone and in the hybrids that have it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Annotated, Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCacheSpec, StateTensor
from axion.layers.conv import CausalConv1d
from axion.layers.linear import FusedLinear, Linear
from axion.layers.selective_scan import selective_scan
from axion.layers.state import scan
from axion.models.config import Size
from axion.models.hybrid import HybridConfig, whole_number

Expansion = Annotated[float, msgspec.Meta(gt=0, le=64)]


@dataclass(kw_only=True)
class MambaConfig(HybridConfig):
    """The fields of Mamba layers.

    Attributes:
        mamba_expand: channels of a mixer for each of the hidden states'.
        mamba_dt_rank: a sixteenth of the hidden size, where it is "auto".
    """

    mamba_d_state: Size = 16
    mamba_d_conv: Size = 4
    mamba_expand: Expansion = 2
    mamba_dt_rank: Size
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False

    @property
    def mamba_size(self) -> int:
        """Channels of a mixer."""
        return int(self.mamba_expand * self.hidden_size)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if config.get("mamba_dt_rank", "auto") == "auto":
            derived["mamba_dt_rank"] = ceil(whole_number(config, "hidden_size", 1) / 16)
        return derived, sources


class MambaMixer(nn.Module):
    """Each channel has a small state, which fades by a step that each token chooses."""

    kv_cache_spec: ClassVar[KVCacheSpec] = NO_KV_CACHE

    def __init__(self, config: MambaConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        size = config.mamba_size
        state_size, rank = config.mamba_d_state, config.mamba_dt_rank
        bias = config.mamba_proj_bias
        self.in_proj = FusedLinear(config.hidden_size, {"x": size, "gate": size}, bias=bias)
        self.activation = get_activation(config.hidden_act)
        self.conv1d = CausalConv1d(
            size, config.mamba_d_conv, self.activation, bias=config.mamba_conv_bias
        )
        self.x_proj = FusedLinear(size, {"dt": rank, "b": state_size, "c": state_size})
        self.dt_proj = Linear(rank, size, bias=True)
        self.A_log = nn.Parameter(torch.empty(size, state_size), requires_grad=False)
        self.D = nn.Parameter(torch.empty(size), requires_grad=False)
        self.out_proj = Linear(size, config.hidden_size, bias=bias)
        self.state_spec = {
            "conv": self.conv1d.state,
            "ssm": StateTensor((size, state_size), torch.float32),
        }

    def normalize(self, dt: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What happens to what a token chooses: `[num_tokens, mamba_dt_rank]` for its steps, and
        `[num_tokens, mamba_d_state]` for what it writes and what it reads."""
        return dt, b, c

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        state = context.states[self.layer_idx]
        x, gate = self.in_proj(hidden_states)
        x = self.conv1d(x, state["conv"], context)
        dt, b, c = self.normalize(*self.x_proj(x))
        cell = partial(selective_scan, a=-self.A_log.float().exp())
        steps = F.softplus(self.dt_proj(dt).float())
        out = scan(cell, state["ssm"], (x, steps, b, c), context)
        out = (out + x * self.D.float()) * F.silu(gate.float())
        return self.out_proj(out.to(hidden_states.dtype))
