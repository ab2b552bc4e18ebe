"""Rotary position embedding in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel, share
from axion.layers.cpu_kernels.simd import (
    LANES,
    first,
    load_bf16,
    load_pairs,
    round_bf16,
    second,
    store_bf16,
    store_pairs,
)

_FEW = 16384  # numbers that one thread has computed before another has begun


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """`axion.layers.rotary.apply_rotary`, or `apply_rotary_interleaved`, rounded as they round.

    Args:
        x: `[num_tokens, num_heads, head_dim]`.
        cos, sin: `[num_tokens, 1, 2 * num_pairs]`.
    """
    num_tokens, num_heads, head_dim = x.shape
    assert len(cos) == len(sin) == num_tokens
    assert cos.dtype == sin.dtype == x.dtype
    cos, sin = cos.contiguous(), sin.contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    token_stride, head_stride, _ = x.stride()
    compute = _rotate if num_tokens * num_heads * head_dim > _FEW else _rotate.alone
    compute(
        out.data_ptr(),
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        num_tokens,
        num_heads,
        head_dim,
        cos.shape[-1] // 2,
        token_stride,
        head_stride,
        interleaved,
    )
    return out


@parallel(integers=11)
def _rotate(arguments: Any) -> None:
    (
        out,
        x,
        cos,
        sin,
        num_tokens,
        num_heads,
        head_dim,
        num_pairs,
        token_stride,
        head_stride,
        interleaved,
    ) = arguments[0]
    start, end = share(num_tokens * num_heads)
    for row in range(start, end):
        token, head = row // num_heads, row % num_heads
        values = x + 2 * (token * token_stride + head * head_stride)
        rotated = out + 2 * row * head_dim
        # Of the second half, whose sines are not negated.
        table = (2 * token + 1) * num_pairs
        for i in range(0, num_pairs, LANES):
            if interleaved:
                pairs = load_pairs(values, 2 * i)
                a, b = first(pairs), second(pairs)
            else:
                a, b = load_bf16(values, i), load_bf16(values, num_pairs + i)
            c, s = load_bf16(cos, table + i), load_bf16(sin, table + i)
            new_a = round_bf16(a * c) - round_bf16(b * s)
            new_b = round_bf16(b * c) + round_bf16(a * s)
            if interleaved:
                store_pairs(rotated, 2 * i, new_a, new_b)
            else:
                store_bf16(rotated, i, new_a)
                store_bf16(rotated, num_pairs + i, new_b)
        for i in range(2 * num_pairs, head_dim, LANES):
            store_bf16(rotated, i, load_bf16(values, i))
