"""Attention over the paged KV cache, and which of its implementations computes."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from axion.layers import kernels
from axion.layers.attention import batch_invariant, reference
from axion.layers.attention.options import AttentionOptions, Compressed
from axion.layers.context import ForwardContext, KVCache


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    chosen: Tensor | None = None,
    compressed: Compressed | None = None,
) -> Tensor:
    """Store the step's keys and values, then attend causally over each sequence's blocks.

    In a form of its own where the step is to be batch-invariant; else by the kernel for the device
    where that knows what is asked; else by torch.

    Args:
        q: `[num_tokens, num_heads, head_dim]`.
        k: `[num_tokens, num_kv_heads, head_dim]`; None: another layer has stored them.
        v: `[num_tokens, num_kv_heads, v_head_dim]`; None as well then.
        scale: factor on the scores, usually `head_dim ** -0.5`.
        window: a token attends to itself and the `window - 1` before it; None: to all of them.
        chunk: sequences are cut into chunks of so many tokens, and a token attends to those of its
            own (Llama 4); None: they are not. Without a window then.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv:2408.00118).
        sinks: `[num_heads]`, the score of one more key, without a value, that all tokens attend
            to (gpt-oss, arXiv:2508.10925).
        alibi_slopes: `[num_heads]`, how much a score loses with each token of distance (ALiBi,
            arXiv:2108.12409).
        chosen: `[num_tokens, num_chosen]` int64, different positions in its own sequence that a
            token attends to, and to no others (see `choose_tokens`); those behind it, and negative
            ones, are left out. Or `[num_tokens, num_kv_heads, num_chosen]`, others for each head.
            None: to all of them.
        compressed: under a window, what a token attends to besides (DeepSeek-V4).

    Returns:
        `[num_tokens, num_heads, v_head_dim]`.
    """
    options = AttentionOptions(
        scale, window, chunk, softcap, sinks, alibi_slopes, chosen, compressed
    )
    if context.batch_invariant:
        return batch_invariant.paged_attention(q, k, v, cache, context, options)
    kernel = kernels.of("attention", q)
    if kernel is not None and kernel.supports(q, cache, options):
        return cast(Tensor, kernel.paged_attention(q, k, v, cache, context, options))
    return reference.paged_attention(q, k, v, cache, context, options)
