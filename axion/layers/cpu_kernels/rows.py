"""Where rows of tensors lie."""

from __future__ import annotations

from torch import Tensor


def heads(x: Tensor) -> tuple[Tensor, int, int, int, int]:
    """`[num_tokens, num_heads, size]`, or `[..., size]` of one head each, as kernels find it.

    Returns:
        The tensor, to be kept as long as it is read; the number of tokens and of heads; how far one
        token is from the next, and one head. The numbers of a head lie side by side.
    """
    shape, strides = x.shape, x.stride()
    if strides[-1] != 1:
        x = x.contiguous()
        strides = x.stride()
    if len(shape) == 3:
        return x, shape[0], shape[1], strides[0], strides[1]
    if len(shape) != 2:
        x = x.reshape(-1, shape[-1])
        return x, len(x), 1, x.stride(0), 0
    return x, shape[0], 1, strides[0], 0
