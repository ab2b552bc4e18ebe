"""Rotary position embedding in one pass, with the norm before it."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

_FEW = 16384  # numbers that one thread has computed before another has begun
_rotate = parallel(".compiled.rotary:rotate", integers=14, floats=2)


def rotate(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
    weight: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    rounds_first: bool = False,
) -> Tensor:
    """`axion.layers.rotary.apply_rotary`, or `apply_rotary_interleaved`, rounded as they round.

    Args:
        x: `[num_tokens, num_heads, head_dim]`.
        cos, sin: `[num_tokens, 1, 2 * num_pairs]`.
        weight: of a norm of each head before; None: there is none.
        eps, offset, rounds_first: as of `rms_norm`.
    """
    num_tokens, num_heads, head_dim = x.shape
    assert len(cos) == len(sin) == num_tokens
    assert cos.dtype == sin.dtype == x.dtype
    assert weight is None or len(weight) == head_dim
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    token_stride, head_stride, _ = x.stride()
    kernel = _rotate()
    compute = kernel if num_tokens * num_heads * head_dim > _FEW else kernel.alone
    compute(
        out.data_ptr(),
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        weight is not None and weight.dtype == torch.float32,
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
