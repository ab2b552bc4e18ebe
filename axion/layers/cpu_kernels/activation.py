"""A gated activation in one pass: `activation(gate) * up`."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

_FEW = 8192  # numbers that one thread has computed before another has begun
_gated = parallel(".compiled.activation:gated", integers=8)


def gated(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """The product, rounded where torch rounds: the activation, and what it is multiplied to.

    Args:
        name: `silu` or `gelu_tanh`.
        gate, up: `[..., size]`, whose rows may be parts of longer ones.
    """
    size = gate.shape[-1]
    assert up.shape == gate.shape
    assert up.dtype == gate.dtype
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    gate, up = _rows(gate), _rows(up)
    num_rows, kernel = len(gate), _gated()
    compute = kernel if num_rows * size > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        gate.stride(0),
        up.stride(0),
        num_rows,
        size,
        name == "gelu_tanh",
    )
    return out


def _rows(x: Tensor) -> Tensor:
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
