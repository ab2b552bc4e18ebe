"""Layer norm in one pass: what torch computes as fast, but not within a recording."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel
from axion.layers.cpu_kernels.rows import heads

_FEW = 16384  # numbers that one thread has computed before another has begun
_layer_norm = parallel(".compiled.norm:layer_norm", integers=9, floats=1)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """As `torch.nn.functional.layer_norm`.

    Args:
        x: `[..., size]`.
        weight, bias: `[size]` each, bfloat16; None: ones and zeros.
    """
    size = x.shape[-1]
    addresses = []
    for parameter in (weight, bias):
        assert parameter is None or (len(parameter), parameter.dtype) == (size, x.dtype)
        addresses.append(0 if parameter is None else parameter.data_ptr())
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows, num_tokens, num_heads, token_stride, head_stride = heads(x)
    kernel = _layer_norm()
    compute = kernel if num_tokens * num_heads * size > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        rows.data_ptr(),
        *addresses,
        num_tokens,
        num_heads,
        size,
        token_stride,
        head_stride,
        eps,
    )
    return out
