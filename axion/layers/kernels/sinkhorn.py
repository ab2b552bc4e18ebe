"""Sinkhorn's iteration in one pass: in torch it is a hundred small kernels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def doubly_stochastic(mix: Tensor, eps: float, num_iterations: int) -> Tensor:
    """What `axion.layers.hyper_connections.HyperConnection.doubly_stochastic` computes.

    Args:
        mix: `[num_tokens, size, size]`, float32.
    """
    size = mix.shape[-1]
    out = mix.new_empty(mix.shape)
    block = triton.next_power_of_2(size)
    _sinkhorn[(len(mix),)](
        out, mix.contiguous(), size, eps, num_iterations, BLOCK=block, num_warps=1
    )
    return out


@triton.jit
def _sinkhorn(out, mix, size, eps, num_iterations, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    mask = (i < size)[:, None] & (i < size)[None, :]
    at = tl.program_id(0).to(tl.int64) * size * size + i[:, None] * size + i[None, :]
    x = tl.load(mix + at, mask=mask, other=-1e30)
    x = tl.exp(x - tl.max(x, 1)[:, None])
    x = tl.where(mask, x / tl.sum(x, 1)[:, None] + eps, 0.0)
    # Padding is divided by 1, and stays 0.
    least = tl.where(i < size, eps, 1.0)
    x /= (tl.sum(x, 0) + least)[None, :]
    for _ in range(num_iterations - 1):
        x /= (tl.sum(x, 1) + least)[:, None]
        x /= (tl.sum(x, 0) + least)[None, :]
    tl.store(out + at, x, mask=mask)
