"""Normalisation layers."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from axion.layers import kernels


class RMSNorm(nn.Module):
    """Root mean square norm (arXiv:1910.07467) as Llama computes it.

    The norm is taken in float32 and rounded to the input's dtype before the weight is applied.

    Attributes:
        rounds_first: it is; otherwise the weight is applied in float32.
        offset: what is added to the weight.
    """

    rounds_first: ClassVar[bool] = True
    offset: ClassVar[float] = 0.0

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` to `[..., size]`."""
        if kernels.run_on(x):
            return self._fused(x, None)[1]
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        if self.rounds_first:
            return self.weight * x32.to(x.dtype)
        return ((self.weight.float() + self.offset) * x32).to(x.dtype)

    def _fused(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        from axion.layers.kernels.norm import rms_norm

        return rms_norm(
            x, residual, self.weight, self.eps, offset=self.offset, rounds_first=self.rounds_first
        )


class Float32RMSNorm(RMSNorm):
    """The weight is applied before the result is rounded (Gemma 4, Helium)."""

    rounds_first = False


def add_and_norm(x: Tensor, residual: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`x + residual`, and what `norm` makes of it."""
    if isinstance(norm, RMSNorm) and kernels.run_on(x):
        return norm._fused(x, residual)
    total = x + residual
    return total, norm(total)
