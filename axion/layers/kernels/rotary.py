"""Rotary position embedding in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from axion.layers.norm import RMSNorm

_MAX_PAIRS = 512
"""That a program rotates."""


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, norm: RMSNorm | None = None, *, interleaved: bool
) -> Tensor:
    """`axion.layers.rotary.apply_rotary`, or `apply_rotary_interleaved`, rounded once.

    Args:
        x: `[num_tokens, num_heads, head_dim]`.
        cos, sin: `[num_tokens, 1, 2 * num_pairs]`.
        norm: of each head, before it is rotated.
    """
    num_tokens, num_heads, head_dim = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(x.shape)
    num_pairs = cos.shape[-1] // 2
    rest = head_dim - 2 * num_pairs
    block = triton.next_power_of_2(max(num_pairs, rest))
    heads = max(1, min(_MAX_PAIRS // block, triton.next_power_of_2(num_heads)))
    _rotate[(num_tokens, triton.cdiv(num_heads, heads))](
        out,
        x,
        cos,
        sin,
        None if norm is None else norm.weight,
        *x.stride()[:2],
        num_heads,
        0.0 if norm is None else norm.eps,
        0.0 if norm is None else norm.offset,
        ROUNDS_FIRST=norm is not None and norm.rounds_first,
        NUM_PAIRS=num_pairs,
        REST=rest,
        # From one number of a pair to the other, and from one pair to the next.
        PARTNER=1 if interleaved else num_pairs,
        STEP=2 if interleaved else 1,
        HEADS=heads,
        BLOCK=block,
    )
    return out


@triton.jit
def _rotate(
    out,
    x,
    cos,
    sin,
    weight,
    token_stride,
    head_stride,
    num_heads,
    eps,
    offset,
    ROUNDS_FIRST: tl.constexpr,
    NUM_PAIRS: tl.constexpr,
    REST: tl.constexpr,
    PARTNER: tl.constexpr,
    STEP: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some heads of a token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    is_head = head < num_heads
    i = tl.arange(0, BLOCK)[None, :]
    is_pair = is_head & (i < NUM_PAIRS)
    x += token * token_stride + head * head_stride
    out += (token * num_heads + head) * (2 * NUM_PAIRS + REST)
    a = tl.load(x + i * STEP, mask=is_pair, other=0.0).to(tl.float32)
    b = tl.load(x + i * STEP + PARTNER, mask=is_pair, other=0.0).to(tl.float32)
    j = 2 * NUM_PAIRS + i
    is_rest = is_head & (j < 2 * NUM_PAIRS + REST)
    rest = tl.load(x + j, mask=is_rest, other=0.0).to(tl.float32)
    if weight is not None:
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1) + tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / (2 * NUM_PAIRS + REST) + eps)[:, None]
        a = _weighted(a * scale, weight, i * STEP, is_pair, offset, x, ROUNDS_FIRST)
        b = _weighted(b * scale, weight, i * STEP + PARTNER, is_pair, offset, x, ROUNDS_FIRST)
        rest = _weighted(rest * scale, weight, j, is_rest, offset, x, ROUNDS_FIRST)
    # Of the second half, whose sines are not negated.
    table = (2 * token + 1) * NUM_PAIRS + i
    c = tl.load(cos + table, mask=i < NUM_PAIRS, other=0.0).to(tl.float32)
    s = tl.load(sin + table, mask=i < NUM_PAIRS, other=0.0).to(tl.float32)
    tl.store(out + i * STEP, (a * c - b * s).to(out.dtype.element_ty), mask=is_pair)
    tl.store(out + i * STEP + PARTNER, (b * c + a * s).to(out.dtype.element_ty), mask=is_pair)
    if REST:
        tl.store(out + j, rest.to(out.dtype.element_ty), mask=is_rest)


@triton.jit
def _weighted(value, weight, i, mask, offset, x, ROUNDS_FIRST: tl.constexpr):
    """What is normalised, times its weight, rounded as `_rms_norm` does."""
    if ROUNDS_FIRST:
        value = value.to(x.dtype.element_ty).to(tl.float32)
    value *= tl.load(weight + i, mask=mask, other=0.0).to(tl.float32) + offset
    return value.to(x.dtype.element_ty).to(tl.float32)
