"""Paged attention in plain torch, for any device: one call for each group of the step."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from axion.layers.attention.chosen import attend_chosen
from axion.layers.attention.group_attention import Caches, attend_chunk, attend_decode
from axion.layers.attention.options import AttentionOptions
from axion.layers.attention.step_groups import MAX_SCORES, Chunk, attention_groups
from axion.layers.context import ForwardContext, KVCache


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
) -> Tensor:
    """As `axion.layers.attention.paged_attention`."""
    if k is not None and v is not None:
        cache.store(context.slot_mapping[cache.group], k, v)
    if options.chooses:
        return attend_chosen(q, _caches(cache, options), context, options)
    out = q.new_empty(*q.shape[:2], cache.values.head_dim)
    attend(q, cache, context, options, out)
    return out


def attend(
    q: Tensor,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
    out: Tensor,
    *,
    longer_than: int = 0,
) -> None:
    """Attend to what is stored, where nothing is chosen.

    Args:
        out: `[num_tokens, num_heads, v_head_dim]`; the rows of sequences with more than
            `longer_than` new tokens are written.
    """
    window, chunk, compressed = options.window, options.chunk, options.compressed
    caches = _caches(cache, options)
    max_scores = None if options.is_plain else MAX_SCORES // q.shape[1]
    entries = None if compressed is None else (compressed.cache.group, compressed.cache.stride)
    groups = context.once(
        (attention_groups, cache.group, window, chunk, max_scores, entries, longer_than),
        partial(
            attention_groups,
            kv_group=cache.group,
            window=window,
            chunk=chunk,
            max_scores=max_scores,
            compressed=entries,
            longer_than=longer_than,
        ),
    )
    for group in groups:
        if isinstance(group, Chunk):
            out[group.rows] = attend_chunk(q[group.rows], caches, group, options)
        elif group.rows is None:
            out[:] = attend_decode(q, caches, group, options)
        else:
            out[group.rows] = attend_decode(q[group.rows], caches, group, options)


def _caches(cache: KVCache, options: AttentionOptions) -> Caches:
    return Caches(cache, None if options.compressed is None else options.compressed.cache)
