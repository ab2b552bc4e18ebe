"""Normalisation layers."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers import kernels
from axion.layers.activation import Activation


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
        if kernel := kernels.of("norm", x):
            return self._fused(kernel, x, None)[1]
        if self.rounds_first:
            return self.weight * F.rms_norm(x, self.weight.shape, eps=self.eps)
        x32 = F.rms_norm(x.float(), self.weight.shape, eps=self.eps)
        return ((self.weight.float() + self.offset) * x32).to(x.dtype)

    def _fused(
        self, kernel: ModuleType, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return kernel.rms_norm(
            x, residual, self.weight, self.eps, offset=self.offset, rounds_first=self.rounds_first
        )


class Float32RMSNorm(RMSNorm):
    """The weight is applied before the result is rounded (Gemma 4, Helium)."""

    rounds_first = False


class OffsetRMSNorm(Float32RMSNorm):
    """The weight is what is added to 1 (Gemma)."""

    offset = 1.0


class LayerNorm(nn.LayerNorm):
    """Torch's, or that of a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` to `[..., size]`."""
        return self.normalize(x, self.weight)

    def normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same with another weight."""
        if kernel := kernels.of("layer_norm", x):
            return kernel.layer_norm(x, weight, self.bias, self.eps)  # type: ignore[no-any-return]
        return F.layer_norm(x, self.normalized_shape, weight, self.bias, self.eps)


class GatedRMSNorm(RMSNorm):
    """The result is multiplied by the SiLU of a gate, in float32 (Gated DeltaNet), or by another
    activation of it."""

    def __init__(self, size: int, eps: float, activation: Activation = F.silu) -> None:
        super().__init__(size, eps)
        self.activation = activation

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """`[..., size]` each to `[..., size]`."""
        return (super().forward(x) * self.activation(gate.float())).to(x.dtype)


class SigmoidGatedRMSNorm(Float32RMSNorm):
    """The result is multiplied by the sigmoid of a gate, in float32 (Kimi delta attention)."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """`[..., size]` each to `[..., size]`."""
        return (super().forward(x.float()) * gate.float().sigmoid()).to(x.dtype)


class GroupRMSNorm(RMSNorm):
    """Groups of channels are normalised each alone, behind a gate or before it (Mamba-2)."""

    def __init__(
        self, size: int, eps: float, *, num_groups: int, norm_before_gate: bool = False
    ) -> None:
        super().__init__(size, eps)
        self.num_groups = num_groups
        self.norm_before_gate = norm_before_gate

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """`[..., size]` each to `[..., size]`."""
        gate = F.silu(gate.float())
        x32 = x.float() if self.norm_before_gate else x.float() * gate
        x32 = x32.unflatten(-1, (self.num_groups, -1))
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        x32 = self.weight.float() * x32.flatten(-2)
        return (x32 * gate if self.norm_before_gate else x32).to(x.dtype)


def add_and_norm(x: Tensor, residual: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`x + residual`, and what `norm` makes of it."""
    if isinstance(norm, RMSNorm) and (kernel := kernels.of("norm", x)):
        return norm._fused(kernel, x, residual)
    total = x + residual
    return total, norm(total)
