"""Root mean square norm in one pass, with the residual addition before it."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel
from axion.layers.cpu_kernels.rows import heads

_FEW = 16384  # numbers that one thread has computed before another has begun
_rms_norm = parallel(".compiled.norm:rms_norm", integers=12, floats=2)


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
    rows, num_tokens, num_heads, token_stride, head_stride = heads(x)
    kernel = _rms_norm()
    compute = kernel if num_tokens * num_heads * size > _FEW else kernel.alone
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
