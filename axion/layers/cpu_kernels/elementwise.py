"""Sums and products of two tensors, and products of one and a number: what torch computes as fast,
but not within a recording."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.parallel import parallel

_FEW = 16384  # numbers that one thread has computed before another has begun
_compute = parallel(".compiled.elementwise:elementwise", integers=6, floats=1)


def can_compute(name: str, a: object, b: object) -> bool:
    """Whether `elementwise` does."""
    if not isinstance(b, Tensor):
        # Torch rounds a number before it is added.
        return name == "multiply" and isinstance(b, int | float) and _is_whole(a)
    return _is_whole(a) and _is_whole(b) and b.shape in (a.shape, a.shape[-1:])


def _is_whole(x: object) -> TypeGuard[Tensor]:
    return (
        isinstance(x, Tensor)
        and x.dtype == torch.bfloat16
        and x.is_contiguous()
        and x.ndim > 0
        and x.shape[-1] % LANES == 0
    )


def elementwise(name: str, a: Tensor, b: Tensor | float) -> Tensor:
    """What torch computes, rounded as torch rounds it.

    Args:
        name: `add` or `multiply`.
        a: `[..., size]`.
        b: of the same shape, or `[size]`, or what to multiply all by.
    """
    out, size = torch.empty_like(a), a.shape[-1]
    address = b_stride = 0
    number = 0.0
    if isinstance(b, Tensor):
        address, b_stride = b.data_ptr(), size if b.ndim == a.ndim else 0
    else:
        number = b
    kernel = _compute(name)
    compute = kernel if a.numel() > _FEW else kernel.alone
    compute(out.data_ptr(), a.data_ptr(), address, b_stride, a.numel() // size, size, number)
    return out
