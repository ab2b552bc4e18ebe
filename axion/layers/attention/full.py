"""Attention without a cache and without an order, for encoders."""

from __future__ import annotations

from itertools import groupby

import torch.nn.functional as F
from torch import Tensor

from axion.layers.context import ForwardContext


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, context: ForwardContext, *, scale: float
) -> Tensor:
    """Every token attends to all tokens of its sequence, which the step holds whole.

    Neighbouring sequences of one length are one call, so nothing is padded or masked.

    Args:
        q, k, v: `[num_tokens, num_heads, head_dim]`.
        scale: factor on the scores.

    Returns:
        `[num_tokens, num_heads, head_dim]`.
    """
    out = q.new_empty(q.shape)
    end = 0
    for length, equal in groupby(context.query_lens):
        num_seqs = len(list(equal))
        start, end = end, end + num_seqs * length
        of_seqs = (x[start:end].unflatten(0, (num_seqs, length)).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(*of_seqs, scale=scale)
        out[start:end] = attended.transpose(1, 2).flatten(0, 1)
    return out
