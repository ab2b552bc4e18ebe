"""Root mean square norm in one pass, with the residual addition before it."""

from __future__ import annotations

import math
from typing import Any

import torch
from numba import float32
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel, share
from axion.layers.cpu_kernels.simd import (
    LANES,
    fma,
    load_bf16,
    round_bf16,
    spread,
    store_bf16,
    total,
)

_FEW = 16384  # numbers that one thread has computed before another has begun


def rms_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    offset: float,
    rounds_first: bool,
) -> tuple[Tensor, Tensor]:
    """`x + residual`, and its norm as `axion.layers.norm.RMSNorm` computes it.

    Args:
        x, residual: `[..., size]`; without a residual the first result is `x`.
        weight: `[size]`.
    """
    size = x.shape[-1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    added = x if residual is None else torch.empty_like(out)
    # Heads of a token lie side by side, and tokens further apart.
    rows = x if x.ndim == 3 else x.reshape(-1, 1, size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    num_tokens, num_heads, _ = rows.shape
    token_stride, head_stride, _ = rows.stride()
    compute = _rms_norm if num_tokens * num_heads * size > _FEW else _rms_norm.alone
    compute(
        out.data_ptr(),
        rows.data_ptr(),
        0 if residual is None else residual.contiguous().data_ptr(),
        added.data_ptr(),
        weight.data_ptr(),
        num_tokens,
        num_heads,
        size,
        token_stride,
        head_stride,
        rounds_first,
        eps,
        offset,
    )
    return added, out


@parallel(integers=11, floats=2)
def _rms_norm(arguments: Any) -> None:
    (
        out,
        x,
        residual,
        added,
        weight,
        num_tokens,
        num_heads,
        size,
        token_stride,
        head_stride,
        rounds_first,
        eps,
        offset,
    ) = arguments[0]
    start, end = share(num_tokens * num_heads)
    for row in range(start, end):
        token, head = row // num_heads, row % num_heads
        values = x + 2 * (token * token_stride + head * head_stride)
        of_row = 2 * row * size
        squares = spread(float32(0.0))
        for i in range(0, size, LANES):
            value = load_bf16(values, i)
            if residual:
                # Rounded, as the sum that the next layer adds to is.
                value = round_bf16(value + load_bf16(residual + of_row, i))
                store_bf16(added + of_row, i, value)
            squares = fma(value, value, squares)
        if residual:
            values = added + of_row
        mean = total(squares) / float32(size)
        factor = spread(float32(1.0) / math.sqrt(mean + float32(eps)))
        for i in range(0, size, LANES):
            value = load_bf16(values, i) * factor
            if rounds_first:
                value = round_bf16(value)
            store_bf16(
                out + of_row, i, value * (load_bf16(weight, i) + spread(float32(offset)))
            )
