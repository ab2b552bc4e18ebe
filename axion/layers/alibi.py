"""Attention with linear biases (ALiBi, arXiv:2108.12409)."""

from __future__ import annotations

import torch
from torch import Tensor


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> Tensor:
    """What the scores of each head lose with each token of distance, as the paper chooses it.

    Args:
        max_bias: the slowest head's slope is `2 ** -max_bias`, where heads are a power of two.

    Returns:
        `[num_heads]`, float32, also when a model is built without memory.
    """
    power = 1 << (num_heads - 1).bit_length()
    steps = torch.arange(1, power + 1, dtype=torch.float32, device="cpu")
    slopes = 2.0 ** -(steps * max_bias / power)
    if power != num_heads:  # those of half as many heads, and every other one between
        slopes = torch.cat((slopes[1::2], slopes[::2]))
    return slopes[:num_heads]
