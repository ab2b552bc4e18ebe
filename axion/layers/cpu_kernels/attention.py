"""Paged attention of tokens that are computed one by one, or few of a sequence at a time.

What it costs is reading keys and values, so they are read once, where they lie: a block after the
other, and of a block all heads that a thread has. The softmax is a running one (FlashAttention-2,
arXiv:2307.08691), in float32.

Threads divide the heads of keys, each of them in all sequences, and so have equally much to do
whatever the lengths are. A long sequence is computed in parts, and what these found is joined
(Flash-Decoding, pytorch.org/blog/flash-decoding), so that there is work for more threads than
heads. Parts begin at multiples of `_PART`, and keys are summed up block by block: a token's bits
depend on its own sequence alone.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from axion.layers.attention import reference
from axion.layers.attention.options import AttentionOptions
from axion.layers.context import Addressed, ForwardContext, KVCache
from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.chunk_attention import attend_chunks
from axion.layers.cpu_kernels.parallel import parallel

MAX_QUERY_LEN = 6
"""More new tokens of a sequence are attended to faster by `chunk_attention`."""

_PART = 512  # tokens
_attend = parallel(".compiled.attention:attend", integers=16, floats=2)


def supports(q: Tensor, cache: KVCache, options: AttentionOptions) -> bool:
    """Whether `paged_attention` computes with such heads and numbers, and what the options ask."""
    sizes = (q.shape[-1], cache.v_head_dim, cache.v.shape[1])
    return (
        options.chosen is None
        and options.compressed is None
        and q.dtype == cache.dtype
        and cache.stride == 1
        and all(size % LANES == 0 for size in sizes)
    )


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
) -> Tensor:
    """As `axion.layers.attention.paged_attention`, of what `supports` allows. Chunks are left to
    `chunk_attention`, or to torch where keys and values are stored in bytes."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, v_dim, format = cache.v.shape[2], cache.v_head_dim, cache.format
    scale, window, chunk, softcap, sinks, slopes, _, _ = options
    plan = context.once(
        (_plan, cache.group, window, chunk, num_heads, v_dim),
        partial(
            _plan,
            kv_group=cache.group,
            window=window,
            chunk=chunk,
            place_size=num_heads * (v_dim + 4 * LANES),
        ),
    )
    out = q.new_empty(num_tokens, num_heads, v_dim)
    q = _with_heads_together(q)
    stored = (0, 0, 0, 0, 0)
    if k is not None and v is not None:
        if format is not None:
            k, v = format.store(k), format.store(v)
        k, v = _with_heads_together(k), _with_heads_together(v)
        size = k.itemsize
        stored = (num_tokens, k.data_ptr(), size * k.stride(0), v.data_ptr(), size * v.stride(0))
    sinks, slopes = (None if x is None else x.float() for x in (sinks, slopes))
    size = cache.k.itemsize
    _attend(head_dim, v_dim, num_heads // num_kv_heads, None if format is None else format.name)(
        out.data_ptr(),
        q.data_ptr(),
        q.stride(0),
        num_kv_heads,
        cache.k.data_ptr(),
        size * cache.k.stride(1),
        cache.v.data_ptr(),
        size * cache.v.stride(1),
        *stored,
        plan.numbers.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        0 if slopes is None else slopes.data_ptr(),
        scale / (softcap or 1),
        softcap or 0,
    )
    if max(context.query_lens) > MAX_QUERY_LEN:
        attend = attend_chunks if format is None else reference.attend
        attend(q, cache, context, options, out, longer_than=MAX_QUERY_LEN)
    return out


def _with_heads_together(x: Tensor) -> Tensor:
    """`[num_tokens, num_heads, head_dim]` with each token's numbers side by side."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _plan(
    context: ForwardContext,
    *,
    kv_group: int,
    window: int | None,
    chunk: int | None,
    place_size: int,
) -> Addressed:
    """What the kernel computes for a step's layers of one kind.

    Returns:
        Where the tensors are, and as many sizes, as `compiled.attention` takes them: slots
        `[num_tokens]` of keys and values that are stored, block tables, parts, and scratch memory,
        float32, of `place_size` for each thread, and for each part if any token has several.
    """
    parts: list[tuple[int, ...]] = []
    num_keys = behind = 0
    is_split = False
    for seq, (query_len, length) in enumerate(
        zip(context.query_lens, context.context_lens_list, strict=True)
    ):
        behind += query_len
        if query_len > MAX_QUERY_LEN:
            continue
        for position in range(length - query_len, length):
            start = 0
            if window is not None:
                start = max(0, position + 1 - window)
            elif chunk is not None:
                start = position // chunk * chunk
            bounds = [
                start,
                *range((start // _PART + 1) * _PART, position + 1, _PART),
                position + 1,
            ]
            count = len(bounds) - 1
            row = behind - length + position
            parts += [
                (row, seq, position, bounds[i], bounds[i + 1], i, count) for i in range(count)
            ]
            num_keys += position + 1 - start
            is_split |= count > 1
    num_places = torch.get_num_threads() + (len(parts) if is_split else 0)
    tensors = (
        context.slot_mapping[kv_group],
        context.block_tables[kv_group].long().contiguous(),
        torch.tensor(parts, dtype=torch.int64),
        torch.empty(num_places * place_size, dtype=torch.float32),
    )
    slots, block_tables, of_parts, scratch = (x.data_ptr() for x in tensors)
    tables = (block_tables, context.block_tables.shape[2], context.block_size)
    numbers = (slots, *tables, of_parts, len(parts), num_keys, scratch)
    return Addressed(torch.tensor(numbers), tensors)
