"""Sums of two tensors: what torch computes as fast, but not within a recording."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.parallel import parallel

_FEW = 16384  # numbers that one thread has computed before another has begun
_add = parallel(".compiled.addition:add", integers=6)


def can_add(a: object, b: object) -> bool:
    """Whether `add` does."""
    return (
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.dtype == b.dtype == torch.bfloat16
        and a.is_contiguous()
        and b.is_contiguous()
        and a.ndim > 0
        and b.shape in (a.shape, a.shape[-1:])
        and a.shape[-1] % LANES == 0
    )


def add(a: Tensor, b: Tensor) -> Tensor:
    """`[..., size]`, and `b` of the same shape or `[size]`: the sum, rounded as torch rounds it."""
    out, size = torch.empty_like(a), a.shape[-1]
    compute = _add() if a.numel() > _FEW else _add().alone
    b_stride = size if b.ndim == a.ndim else 0
    compute(out.data_ptr(), a.data_ptr(), b.data_ptr(), b_stride, a.numel() // size, size)
    return out
