"""Linear layers. Models ask for a `Linear` or a `PackedLinear` and never for `nn.Linear`, so
that a quantization format can decide what stands behind the name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """`x @ weight.T + bias`, `[..., in_features]` to `[..., out_features]`."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.register_parameter(
            "bias",
            nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class DenseLinear(Linear):
    """A linear layer whose `weight` its model reads too, so that it is never kept quantized."""


class TransposedLinear(Linear):
    """A linear layer whose weight is stored `[in_features, out_features]`."""

    def stored_views(self) -> dict[str, Tensor]:
        """Name of each stored tensor to the parameter that it fills, in its shape."""
        views = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return views | {"weight": views["weight"].T}


class FusedLinear(Linear):
    """Several projections of one input, stored and computed as one.

    Args:
        shards: name of each projection to its number of output features.
    """

    def __init__(self, in_features: int, shards: dict[str, int], *, bias: bool = False) -> None:
        super().__init__(in_features, sum(shards.values()), bias=bias)
        self.shards = shards

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """`[..., in_features]` to one `[..., out_features]` for each shard, in order."""
        return super().forward(x).split_with_sizes(tuple(self.shards.values()), dim=-1)


class PackedLinear(FusedLinear):
    """Several projections of one input that a checkpoint stores apart, computed as one.

    They are stored beside each other in the module tree (`q_proj.weight`, `k_proj.weight`, ...),
    under the names that `shards` has.
    """

    def shard_views(self) -> dict[str, Tensor]:
        """`q_proj.weight` and the like to the rows of the packed parameter that hold it."""
        views = {}
        for name, parameter in self.named_parameters(recurse=False):
            rows = parameter.detach().split(tuple(self.shards.values()))
            views |= {f"{shard}.{name}": row for shard, row in zip(self.shards, rows, strict=True)}
        return views
