"""A gated activation in one pass: `activation(gate) * up`."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel
from axion.layers.cpu_kernels.rows import heads

_FEW = 8192  # numbers that one thread has computed before another has begun
_gated = parallel(".compiled.activation:gated", integers=11)


def gated(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """The product, rounded where torch rounds: the activation, and what it is multiplied to.

    Args:
        name: `silu` or `gelu_tanh`.
        gate, up: `[..., size]`, whose rows may be parts of longer ones.
    """
    shape = gate.shape
    assert up.shape == shape
    assert up.dtype == gate.dtype
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    gate, num_tokens, num_heads, *gate_strides = heads(gate)
    up, _, _, *up_strides = heads(up)
    kernel = _gated()
    compute = kernel if gate.numel() > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        *gate_strides,
        *up_strides,
        num_tokens,
        num_heads,
        shape[-1],
        name == "gelu_tanh",
    )
    return out
