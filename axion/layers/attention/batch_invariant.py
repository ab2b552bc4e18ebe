"""Paged attention whose result for a token depends on its own sequence alone, to the last bit.

It is the same whatever else is in the step, and whether the tokens before were computed one by one,
in chunks, or found in the prefix cache. Sums over keys are what could differ, so they are made in
one order only: keys are taken in tiles of `_TILE`, counted from the sequence's first token, one
after the other, with a running softmax (arXiv:1805.02867) in float32. What a token must not see has
the weight 0 there, and tiles of such keys change nothing.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache
from axion.layers.kv_format import KVEntries
from axion.layers.transfer import to_device

_TILE = 256
# Libraries multiply fewer rows by other kernels.
_MIN_ROWS = 16
# Below every score, so that the difference of two such is a number.
_LOWEST = -1e30


class _Group(NamedTuple):
    """Sequences with equally many new tokens.

    Attributes:
        rows: `[batch * query_len]`, in the flat batch.
        query_len: new tokens of each sequence.
        slots: `[batch, length]`, where keys lie in the cache, in whole tiles that begin at a
            multiple of the tile.
        hidden: `[batch, 1, query_len, length]`, what each token does not see.
        distances: of that shape, from each token to those that it sees; at most 0.
    """

    rows: Tensor
    query_len: int
    slots: Tensor
    hidden: Tensor
    distances: Tensor


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
) -> Tensor:
    """As `axion.layers.attention.paged_attention`, but `q` may have more rows than there are
    tokens, which get the result of the last.

    Raises:
        NotImplementedError: tokens are chosen; which they are depends on the batch. Or there are
            compressed entries, whose sums are made in no order of their own.
    """
    if options.chosen is not None or options.compressed is not None:
        raise NotImplementedError("batch-invariant attention to chosen tokens")
    if k is not None and v is not None:
        cache.store(context.slot_mapping[cache.group], k, v)
    keys, values = cache.keys, cache.values
    groups = context.once(
        (_groups, cache.group, options.window, options.chunk),
        partial(_groups, kv_group=cache.group, window=options.window, chunk=options.chunk),
    )
    out = q.new_empty(*q.shape[:2], values.head_dim)
    for group in groups:
        # [batch, num_kv_heads, query_len * heads_per_kv_head, head_dim]
        of_group = q[group.rows].unflatten(0, (-1, group.query_len))
        of_heads = of_group.unflatten(2, (keys.num_heads, -1)).permute(0, 2, 1, 3, 4)
        result = _attend(of_heads, keys, values, group, options)
        out[group.rows] = result.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).to(q.dtype)
    # Padding is the last token once more, and writes to its place in the cache what it does.
    num_tokens = sum(context.query_lens)
    out[num_tokens:] = out[num_tokens - 1]
    return out


def _attend(
    q: Tensor, keys: KVEntries, values: KVEntries, group: _Group, options: AttentionOptions
) -> Tensor:
    """`[batch, num_kv_heads, query_len, heads_per_kv_head, head_dim]` to the same with
    `v_head_dim`, float32."""
    shape = q.shape[2:4]
    rows = _at_least_few(q.flatten(2, 3).float())
    hidden = _at_least_few(group.hidden.repeat_interleave(shape[1], 2))
    bias = None
    if options.alibi_slopes is not None:
        slopes = options.alibi_slopes.float().view(1, q.shape[1], 1, -1, 1)
        bias = _at_least_few((group.distances[:, :, :, None] * slopes).flatten(2, 3))
    largest = rows.new_full((*rows.shape[:-1], 1), _LOWEST)
    total = torch.zeros_like(largest)
    out = rows.new_zeros(*rows.shape[:-1], values.head_dim)
    for start in range(0, group.slots.shape[1], _TILE):
        tile = slice(start, start + _TILE)
        slots = group.slots[:, tile]
        k, v = (entries.gather(slots).float().transpose(1, 2) for entries in (keys, values))
        scores = (rows @ k.transpose(-1, -2)) * options.scale
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        if bias is not None:
            scores = scores + bias[..., tile]
        scores = scores.masked_fill(hidden[..., tile], float("-inf"))
        new_largest = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights = (scores - new_largest).exp()
        shrink = (largest - new_largest).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights @ v
        largest = new_largest
    out, total, largest = (
        x[:, :, : shape.numel()].unflatten(2, shape) for x in (out, total, largest)
    )
    if options.sinks is not None:
        sinks = options.sinks.float().view(1, q.shape[1], 1, -1, 1)
        total = total + (sinks - largest).exp()
    return out / total


def _at_least_few(x: Tensor) -> Tensor:
    """`[..., num_rows, size]` with at least `_MIN_ROWS` rows."""
    return F.pad(x, (0, 0, 0, max(0, _MIN_ROWS - x.shape[-2])))


def _groups(
    context: ForwardContext, *, kv_group: int, window: int | None, chunk: int | None
) -> list[_Group]:
    reach = window or chunk
    device = context.positions.device
    by_query_len: dict[int, list[tuple[int, int]]] = {}
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        key = 1 if query_len == 1 else -seq - 1  # a chunk stays alone
        by_query_len.setdefault(key, []).append((seq, row))
        row += query_len
    groups = []
    for members in by_query_len.values():
        seqs, first_rows = (list(column) for column in zip(*members, strict=True))
        query_len = context.query_lens[seqs[0]]
        lengths = [context.context_lens_list[seq] for seq in seqs]
        visible = [
            0 if reach is None else max(0, length - query_len - reach + 1) for length in lengths
        ]
        first = min(visible) // _TILE * _TILE
        end = -(-max(lengths) // _TILE) * _TILE
        tokens = torch.arange(first, end, device=device)[None]
        ends = to_device(np.array(lengths), device)[:, None]
        # Blocks before the window are gone: what is hidden repeats a token that is there.
        there = torch.minimum(tokens, ends - 1)
        there = torch.maximum(there, to_device(np.array(visible), device)[:, None])
        tables = context.block_tables[kv_group].index_select(0, to_device(np.array(seqs), device))
        blocks = tables.gather(1, there // context.block_size).long()
        positions = ends - query_len + torch.arange(query_len, device=device)
        distances = tokens[:, None] - positions[..., None]
        hidden = distances > 0
        if window is not None:
            hidden |= distances <= -window
        if chunk is not None:
            hidden |= tokens[:, None] < (positions // chunk * chunk)[..., None]
        rows = to_device(np.array(first_rows), device)[:, None]
        groups.append(
            _Group(
                rows=(rows + torch.arange(query_len, device=device)).flatten(),
                query_len=query_len,
                slots=blocks * context.block_size + there % context.block_size,
                hidden=hidden[:, None],
                distances=distances[:, None],
            )
        )
    return groups
