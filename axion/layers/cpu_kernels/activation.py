"""A gated activation in one pass: `activation(gate) * up`."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

_FEW = 8192  # numbers that one thread has computed before another has begun
_gated = parallel(".compiled.activation:gated", integers=7)


def gated(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """The product, rounded where torch rounds: the activation, and what it is multiplied to.

    Args:
        name: `silu` or `gelu_tanh`.
        gate, up: `[..., size]`, whose rows may be parts of longer ones.
    """
    shape = gate.shape
    size = shape[-1]
    assert up.shape == shape
    assert up.dtype == gate.dtype
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    if len(shape) != 2:
        gate, up = gate.reshape(-1, size), up.reshape(-1, size)
    strides = gate.stride()
    if strides[1] != 1 or up.stride() != strides:
        gate, up, strides = gate.contiguous(), up.contiguous(), (size, 1)
    num_rows, kernel = len(gate), _gated()
    compute = kernel if num_rows * size > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        strides[0],
        num_rows,
        size,
        name == "gelu_tanh",
    )
    return out
