"""Root mean square norm in one pass, with the residual addition before it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


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
    total = x if residual is None else x.new_empty(x.shape)
    out = x.new_empty(x.shape)
    # Heads of a token lie side by side, and tokens further apart.
    rows = x if x.ndim == 3 else x.reshape(-1, 1, size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    block = triton.next_power_of_2(size)
    _rms_norm[rows.shape[:2]](
        out,
        total,
        rows,
        None if residual is None else residual.contiguous(),
        weight,
        *rows.stride()[:2],
        size,
        eps,
        offset,
        ROUNDS_FIRST=rounds_first,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return total, out


@triton.jit
def _rms_norm(
    out,
    total,
    x,
    residual,
    weight,
    token_stride,
    head_stride,
    size,
    eps,
    offset,
    ROUNDS_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = (token * tl.num_programs(1) + head) * size
    i = tl.arange(0, BLOCK)
    mask = i < size
    value = tl.load(x + token * token_stride + head * head_stride + i, mask=mask, other=0.0)
    if residual is not None:
        # Rounded, as the sum that the next layer adds to is.
        value = value.to(tl.float32) + tl.load(residual + row + i, mask=mask, other=0.0)
        value = value.to(x.dtype.element_ty)
        tl.store(total + row + i, value, mask=mask)
    value = value.to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / size + eps)
    if ROUNDS_FIRST:
        value = value.to(x.dtype.element_ty).to(tl.float32)
    value *= tl.load(weight + i, mask=mask, other=0.0).to(tl.float32) + offset
    tl.store(out + row + i, value.to(x.dtype.element_ty), mask=mask)
