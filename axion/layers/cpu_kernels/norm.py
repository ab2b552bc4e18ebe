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
    load_f32,
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
        weight: `[size]`, bfloat16 or float32.
    """
    size = x.shape[-1]
    assert len(weight) == size
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    added, residual_address = x, 0
    if residual is not None:
        assert residual.shape == x.shape
        assert residual.dtype == x.dtype
        added, residual = torch.empty_like(out), residual.contiguous()
        residual_address = residual.data_ptr()
    # Heads of a token lie side by side, and tokens further apart.
    rows = x if x.ndim == 3 else x.reshape(-1, 1, size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    num_tokens, num_heads, _ = rows.shape
    token_stride, head_stride, _ = rows.stride()
    compute = _rms_norm if num_tokens * num_heads * size > _FEW else _rms_norm.alone
    compute(
        out.data_ptr(),
        rows.data_ptr(),
        residual_address,
        added.data_ptr(),
        weight.data_ptr(),
        weight.dtype == torch.float32,
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


@parallel(integers=12, floats=2)
def _rms_norm(arguments: Any) -> None:
    (
        out,
        x,
        residual,
        added,
        weight,
        is_weight_float32,
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
        scale = spread(float32(1.0) / math.sqrt(mean + float32(eps)))
        for i in range(0, size, LANES):
            value = load_bf16(values, i) * scale
            if rounds_first:
                value = round_bf16(value)
            factor = load_f32(weight, i) if is_weight_float32 else load_bf16(weight, i)
            store_bf16(out + of_row, i, value * (factor + spread(float32(offset))))
