"""Rotary position embedding in one pass, with the norm before it."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel
from axion.layers.cpu_kernels.rows import heads
from axion.layers.norm import RMSNorm

_FEW = 16384  # numbers that one thread has computed before another has begun
_rotate = parallel(".compiled.rotary:rotate", integers=14, floats=2)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    norm: RMSNorm | None = None,
    *,
    interleaved: bool,
) -> Tensor:
    """`axion.layers.rotary.apply_rotary`, or `apply_rotary_interleaved`, rounded as they round.

    Args:
        x: `[num_tokens, num_heads, head_dim]`.
        cos, sin: `[num_tokens, 1, 2 * num_pairs]`.
        norm: of each head, before it is rotated.
    """
    head_dim = x.shape[-1]
    x, num_tokens, num_heads, token_stride, head_stride = heads(x)
    assert len(cos) == len(sin) == num_tokens
    assert cos.dtype == sin.dtype == x.dtype
    weight, is_weight_float32, rounds_first, eps, offset = 0, False, False, 0.0, 0.0
    if norm is not None:
        of_norm = norm.weight
        assert len(of_norm) == head_dim
        weight, is_weight_float32 = of_norm.data_ptr(), of_norm.dtype == torch.float32
        rounds_first, eps, offset = norm.rounds_first, norm.eps, norm.offset
    cos, sin = cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kernel = _rotate()
    compute = kernel if num_tokens * num_heads * head_dim > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        x.data_ptr(),
        weight,
        is_weight_float32,
        cos.data_ptr(),
        sin.data_ptr(),
        num_tokens,
        num_heads,
        head_dim,
        cos.shape[-1] // 2,
        token_stride,
        head_stride,
        interleaved,
        rounds_first,
        eps,
        offset,
    )
    return out
