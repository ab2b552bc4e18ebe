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

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.context import ForwardContext, KVCache

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
        first: the first key's token, a multiple of the tile.
        slots: `[batch, length]`, where keys lie in the cache from `first` on, in whole tiles.
        hidden: `[batch, 1, query_len, length]`, what each token does not see.
    """

    rows: Tensor
    query_len: int
    first: int
    slots: Tensor
    hidden: Tensor


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `axion.layers.attention.reference.paged_attention`, but `q` may have more rows than there
    are tokens, which get the result of the last."""
    keys, values = (x.view(-1, *x.shape[2:]) for x in (cache.k, cache.v))
    if k is not None:
        slot_mapping = context.slot_mapping[cache.group]
        keys.index_copy_(0, slot_mapping, k)
        values.index_copy_(0, slot_mapping, v)
    groups = context.once(
        (_groups, cache.group, window), partial(_groups, kv_group=cache.group, window=window)
    )
    num_kv_heads = keys.shape[1]
    out = q.new_empty(*q.shape[:2], values.shape[-1])
    for group in groups:
        # [batch, num_kv_heads, query_len * heads_per_kv_head, head_dim]
        of_group = q[group.rows].unflatten(0, (-1, group.query_len))
        of_heads = of_group.unflatten(2, (num_kv_heads, -1)).permute(0, 2, 1, 3, 4)
        result = _attend(of_heads, keys, values, group, scale, softcap, sinks)
        out[group.rows] = result.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).to(q.dtype)
    # Padding is the last token once more, and writes to its place in the cache what it does.
    num_tokens = sum(context.query_lens)
    out[num_tokens:] = out[num_tokens - 1]
    return out


def _attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    group: _Group,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`[batch, num_kv_heads, query_len, heads_per_kv_head, head_dim]` to the same with
    `v_head_dim`, float32."""
    shape = q.shape[2:4]
    rows = q.flatten(2, 3).float()
    padding = max(0, _MIN_ROWS - rows.shape[2])
    rows = F.pad(rows, (0, 0, 0, padding))
    hidden = group.hidden.repeat_interleave(shape[1], 2)
    hidden = F.pad(hidden, (0, 0, 0, padding))
    largest = rows.new_full((*rows.shape[:-1], 1), _LOWEST)
    total = torch.zeros_like(largest)
    out = rows.new_zeros(*rows.shape[:-1], values.shape[-1])
    for start in range(0, group.slots.shape[1], _TILE):
        slots = group.slots[:, start : start + _TILE]
        k, v = (F.embedding(slots, x.flatten(1)).float() for x in (keys, values))
        k, v = (x.unflatten(-1, (q.shape[1], -1)).transpose(1, 2) for x in (k, v))
        scores = (rows @ k.transpose(-1, -2)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(hidden[..., start : start + _TILE], float("-inf"))
        new_largest = torch.maximum(largest, scores.amax(-1, keepdim=True))
        weights = (scores - new_largest).exp()
        shrink = (largest - new_largest).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights @ v
        largest = new_largest
    end = rows.shape[2] - padding
    out, total, largest = (x[:, :, :end].unflatten(2, shape) for x in (out, total, largest))
    if sinks is not None:
        total = total + (sinks.float().view(1, q.shape[1], 1, -1, 1) - largest).exp()
    return out / total


def _groups(context: ForwardContext, *, kv_group: int, window: int | None) -> list[_Group]:
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
            0 if window is None else max(0, length - query_len - window + 1) for length in lengths
        ]
        first = min(visible) // _TILE * _TILE
        end = -(-max(lengths) // _TILE) * _TILE
        tokens = torch.arange(first, end, device=device)[None]
        ends = torch.tensor(lengths, device=device)[:, None]
        # Blocks before the window are gone: what is hidden repeats a token that is there.
        there = torch.minimum(tokens, ends - 1)
        there = torch.maximum(there, torch.tensor(visible, device=device)[:, None])
        tables = context.block_tables[kv_group][seqs]
        blocks = tables.gather(1, there // context.block_size).long()
        positions = ends - query_len + torch.arange(query_len, device=device)
        hidden = tokens[:, None] > positions[..., None]
        if window is not None:
            hidden |= tokens[:, None] <= positions[..., None] - window
        rows = torch.tensor(first_rows, device=device)[:, None]
        groups.append(
            _Group(
                rows=(rows + torch.arange(query_len, device=device)).flatten(),
                query_len=query_len,
                first=first,
                slots=blocks * context.block_size + there % context.block_size,
                hidden=hidden[:, None],
            )
        )
    return groups
