"""Attention: over the paged KV cache for decoders, over whole sequences for encoders. Models call
these and know no kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from axion.layers.attention import batch_invariant, reference
from axion.layers.attention.full import full_attention
from axion.layers.context import ForwardContext, KVCache

__all__ = ["full_attention", "paged_attention"]


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    **options: Any,
) -> Tensor:
    """As `axion.layers.attention.reference.paged_attention`, by what suits the step."""
    module = batch_invariant if context.batch_invariant else reference
    return module.paged_attention(q, k, v, cache, context, **options)
