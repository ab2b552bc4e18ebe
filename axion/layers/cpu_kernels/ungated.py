"""Activations without a gate: what torch computes as fast, but not within a recording."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

_FEW = 8192  # numbers that one thread has computed before another has begun
_ungated = parallel(".compiled.activation:ungated", integers=3)


def ungated(name: str, x: Tensor) -> Tensor:
    """The activation of each number, in the shape of `x`.

    Args:
        name: `gelu`, `gelu_tanh`, `relu`, `relu2`, `sigmoid` or `silu`.
    """
    x = x.contiguous()
    out, kernel = torch.empty_like(x), _ungated(name)
    compute = kernel if x.numel() > _FEW else kernel.alone
    compute(out.data_ptr(), x.data_ptr(), x.numel())
    return out
