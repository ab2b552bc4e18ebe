"""Which of the implementations of paged attention computes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from axion.layers import kernels
from axion.layers.attention import batch_invariant, reference
from axion.layers.context import ForwardContext, KVCache


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    **options: Any,
) -> Tensor:
    """Store the step's keys and values, then attend causally over each sequence's blocks.

    In a form of its own where the step is to be batch-invariant; else by Triton's kernel where
    there is a GPU and the kernel knows what is asked; else by torch.

    Args:
        options: what they are, and all shapes: `axion.layers.attention.reference.paged_attention`.
    """
    if context.batch_invariant:
        return batch_invariant.paged_attention(q, k, v, cache, context, **options)
    options = {name: option for name, option in options.items() if option is not None}
    if kernels.run_on(q):
        from axion.layers.kernels import attention

        if attention.supports(q, cache, options):
            return attention.paged_attention(q, k, v, cache, context, **options)
    return reference.paged_attention(q, k, v, cache, context, **options)
