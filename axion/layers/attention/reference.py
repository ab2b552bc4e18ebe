"""Paged attention in plain torch, for any device.

The step's sequences fall into groups, one attention call each: all sequences with a single new
token together, padded to the longest, and every longer chunk on its own, or piece by piece. What
the calls need besides q, k and v (rows, slots, masks) depends on the step and on the layer's
window, so it is built once and shared by the layers that are alike. Keys before the window are not
read. Padding repeats a sequence's own tokens, never another sequence's: a NaN in one sequence
stays there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.context import ForwardContext, KVCache

# A chunk under a window is cut into pieces of the window's size, so that each reads few keys, but
# not into smaller ones.
_MIN_ROWS = 128
# What torch's own attention does not compute is cut to so many scores a piece (64 MiB).
_MAX_SCORES = 2**24
# Of a chunk in bfloat16 on a CPU: scores that fit in its caches, and rows that are worth a product.
_BLOCK_SCORES = 2**21
_BLOCK_ROWS = (16, 64)


Slots = Tensor | slice
"""Of a single sequence it may be a slice: a cache is read without a copy where blocks follow one
another."""


@dataclass(frozen=True, slots=True)
class _Decode:
    """Sequences of one new token each.

    Attributes:
        rows: their rows in the flat batch; None means all rows in order.
        slots: of `[batch, length]`, where the tokens that they see lie in the KV cache.
        mask: `[batch, 1, 1, length]`, additive.
    """

    rows: Tensor | None
    slots: Slots
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several new tokens of one sequence.

    Attributes:
        slots: where the tokens that they see lie in the KV cache, in order.
        mask: `[query_len, length]`, additive; None: a token sees itself and all before it.
    """

    rows: slice
    slots: Slots
    mask: Tensor | None


class _Scores(NamedTuple):
    """What becomes of the products of queries and keys; see `paged_attention`."""

    scale: float
    softcap: float | None
    sinks: Tensor | None

    @property
    def is_plain(self) -> bool:
        """Whether torch's own attention computes it."""
        return self.softcap is None and self.sinks is None


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
    """Store the step's keys and values, then attend causally over each sequence's blocks.

    Args:
        q: `[num_tokens, num_heads, head_dim]`.
        k: `[num_tokens, num_kv_heads, head_dim]`; None: another layer has stored them.
        v: `[num_tokens, num_kv_heads, v_head_dim]`; None as well then.
        scale: factor on the scores, usually `head_dim ** -0.5`.
        window: a token attends to itself and the `window - 1` before it; None: to all of them.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2, arXiv:2408.00118).
        sinks: `[num_heads]`, the score of one more key, without a value, that all tokens attend
            to (gpt-oss, arXiv:2508.10925).

    Returns:
        `[num_tokens, num_heads, v_head_dim]`.
    """
    keys, values = (x.view(-1, *x.shape[2:]) for x in (cache.k, cache.v))
    if k is not None:
        slot_mapping = context.slot_mapping[cache.group]
        keys.index_copy_(0, slot_mapping, k)
        values.index_copy_(0, slot_mapping, v)
    scores = _Scores(scale, softcap, sinks)
    max_scores = None if scores.is_plain else _MAX_SCORES // q.shape[1]
    groups = context.once(
        (_groups, cache.group, window, max_scores),
        partial(_groups, kv_group=cache.group, window=window, max_scores=max_scores),
    )
    out = q.new_empty(*q.shape[:2], values.shape[-1])
    for group in groups:
        if isinstance(group, _Chunk):
            out[group.rows] = _attend_chunk(q[group.rows], keys, values, group, scores)
        elif group.rows is None:
            return _attend_decode(q, keys, values, group, scores)
        else:
            out[group.rows] = _attend_decode(q[group.rows], keys, values, group, scores)
    return out


def _attend_decode(
    q: Tensor, keys: Tensor, values: Tensor, group: _Decode, scores: _Scores
) -> Tensor:
    # The heads that share a kv head become rows of one query: no copies of keys and values.
    q = q.unflatten(1, (keys.shape[1], -1))
    k, v = (
        _gather(cache, group.slots).view(len(q), -1, *cache.shape[1:]).transpose(1, 2)
        for cache in (keys, values)
    )
    if scores.is_plain:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scores.scale)
    else:
        out = _attend(q[..., None, :], k, v, group.mask[..., None, :], scores).squeeze(-2)
    return out.flatten(1, 2)


def _attend_chunk(
    q: Tensor, keys: Tensor, values: Tensor, chunk: _Chunk, scores: _Scores
) -> Tensor:
    # kv heads as the batch, and the query heads of each as its heads: expand copies nothing.
    q = q.transpose(0, 1).unflatten(0, (keys.shape[1], -1))
    k, v = (_gather(cache, chunk.slots).transpose(0, 1) for cache in (keys, values))
    if scores.is_plain and _suits_blocks(q):
        return _attend_blocks(q, k, v, chunk.mask, scores.scale)
    if scores.is_plain:
        out = F.scaled_dot_product_attention(
            q,
            k[:, None].expand(-1, q.shape[1], -1, -1),
            v[:, None].expand(-1, q.shape[1], -1, -1),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=scores.scale,
        )
    else:
        out = _attend(q, k, v, chunk.mask, scores)
    return out.flatten(0, 1).transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: _Scores) -> Tensor:
    """Attention with all that `scores` asks for, in float32.

    Args:
        q: `[..., num_kv_heads, heads_per_kv_head, query_len, head_dim]`.
        k: `[..., num_kv_heads, length, head_dim]`.
        v: `[..., num_kv_heads, length, v_head_dim]`.
        mask: additive, of the shape `[..., query_len, length]`; None: causal.

    Returns:
        `[..., num_kv_heads, heads_per_kv_head, query_len, v_head_dim]`.
    """
    rows = q.shape[-3:-1]
    x = (q.flatten(-3, -2) @ k.transpose(-1, -2)).float().unflatten(-2, rows) * scores.scale
    if scores.softcap is not None:
        x = scores.softcap * torch.tanh(x / scores.softcap)
    if mask is None:
        mask = x.new_full(x.shape[-2:], float("-inf")).triu(1)
    x = x + mask
    out = (x.softmax(-1).to(v.dtype).flatten(-3, -2) @ v).unflatten(-2, rows)
    if scores.sinks is not None:
        # The share of the softmax's sum that is not the sink's.
        sinks = scores.sinks.float().view(*q.shape[-4:-2], 1, 1)
        out = out * torch.sigmoid(x.logsumexp(-1, keepdim=True) - sinks).to(out.dtype)
    return out


def _suits_blocks(x: Tensor) -> bool:
    """Whether `_attend_blocks` is faster than torch's own attention: three times, measured with
    AVX-512; in float32 it is not."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of a chunk a few rows at a time, each over the keys that it can see.

    Scores are rounded to the number format of q, as they are where attention is written out.

    Args:
        q: `[num_kv_heads, heads_per_kv_head, query_len, head_dim]`.
        k: `[num_kv_heads, length, head_dim]`.
        v: `[num_kv_heads, length, v_head_dim]`.
        mask: as in `_Chunk`.

    Returns:
        `[query_len, num_heads, v_head_dim]`.
    """
    (num_kv_heads, group, query_len, _), length = q.shape, k.shape[1]
    fewest, most = _BLOCK_ROWS
    step = min(max(_BLOCK_SCORES // (num_kv_heads * group * length), fewest), most)
    k, v = k.contiguous().transpose(1, 2), v.contiguous()
    hidden = torch.full((step, step), float("-inf"), dtype=q.dtype).triu_(1)
    zero = torch.zeros(1, dtype=q.dtype)  # of which baddbmm takes nothing
    out = q.new_empty(query_len, num_kv_heads, group, v.shape[-1])
    for start in range(0, query_len, step):
        end = min(start + step, query_len)
        seen = length - query_len + end
        rows = q[:, :, start:end].flatten(1, 2)
        x = torch.baddbmm(zero, rows, k[..., :seen], beta=0, alpha=scale)
        x = x.unflatten(1, (group, end - start))
        if mask is None:
            x[..., seen - (end - start) :] += hidden[: end - start, : end - start]
        else:
            x += mask[start:end, :seen]
        x = torch.bmm(x.softmax(-1).flatten(1, 2), v[:, :seen])
        out[start:end] = x.unflatten(1, (group, end - start)).permute(2, 0, 1, 3)
    return out.flatten(1, 2)


def _gather(cache: Tensor, slots: Slots) -> Tensor:
    """Entries `[num_slots, num_kv_heads, head_dim]` at `slots`, of any shape."""
    if isinstance(slots, slice):
        return cache[slots]
    # As an embedding: a whole entry is copied at once, many times faster than by indexing.
    return F.embedding(slots, cache.flatten(1)).unflatten(-1, cache.shape[1:])


def _groups(
    context: ForwardContext, *, kv_group: int, window: int | None, max_scores: int | None
) -> list[_Decode | _Chunk]:
    tables = context.block_tables[kv_group]
    needs_mask = max_scores is not None or not _suits_blocks(context.kv_caches[0].k)
    groups: list[_Decode | _Chunk] = []
    decodes: list[int] = []
    decode_rows: list[int] = []
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len == 1:
            decodes.append(seq)
            decode_rows.append(row)
        else:
            context_len = context.context_lens_list[seq]
            max_rows = query_len if window is None else max(window, _MIN_ROWS)
            if max_scores is not None:
                length = context_len if window is None else min(context_len, max_rows + window)
                max_rows = min(max_rows, max(1, max_scores // length))
            first = context_len - query_len
            for start in range(first, context_len, max_rows):
                end = min(start + max_rows, context_len)
                chunk = _chunk(
                    *(context, tables, seq, row + start - first, start, end, window),
                    needs_mask=needs_mask,
                )
                groups.append(chunk)
        row += query_len
    if decodes:
        rows = decode_rows if groups else None
        groups.append(_decode(context, tables, decodes, rows, window))
    return groups


def _decode(
    context: ForwardContext,
    tables: Tensor,
    seqs: list[int],
    rows: list[int] | None,
    window: int | None,
) -> _Decode:
    device = context.positions.device
    context_lens = context.context_lens
    if rows is not None:
        index = torch.tensor(seqs, device=device)
        tables, context_lens = tables[index], context_lens[index]
    lengths = context_lens[:, None]
    longest = max(context.context_lens_list[seq] for seq in seqs)
    if window is None or window >= longest:
        tokens = torch.arange(longest, device=device)
    else:
        tokens = torch.arange(window, device=device) + (lengths - window).clamp(min=0)
    mask = torch.zeros(len(seqs), tokens.shape[-1], dtype=_dtype(context), device=device)
    mask.masked_fill_(tokens >= lengths, float("-inf"))
    return _Decode(
        rows=None if rows is None else torch.tensor(rows, device=device),
        slots=_slots(tables, torch.minimum(tokens, lengths - 1), context.block_size),
        mask=mask[:, None, None],
    )


def _chunk(
    context: ForwardContext,
    tables: Tensor,
    seq: int,
    row: int,
    start: int,
    end: int,
    window: int | None,
    *,
    needs_mask: bool,
) -> _Chunk:
    """The sequence's tokens from `start` up to `end`, of which the first is the batch's `row`.

    Args:
        needs_mask: where there are others before them, although all of those are seen.
    """
    device = context.positions.device
    rows = slice(row, row + end - start)
    first = 0 if window is None else max(0, start - window + 1)
    tokens = torch.arange(first, end, device=device)
    mask = None
    if (start > 0 and needs_mask) or (window is not None and end > window):
        positions = context.positions[rows, None]
        hidden = tokens > positions
        if window is not None:
            hidden |= tokens <= positions - window
        mask = torch.zeros(hidden.shape, dtype=_dtype(context), device=device)
        mask.masked_fill_(hidden, float("-inf"))
    return _Chunk(rows, _slots(tables[seq : seq + 1], tokens[None], context.block_size), mask)


def _slots(block_tables: Tensor, tokens: Tensor, block_size: int) -> Slots:
    """Slots of `tokens` (indices in their sequence, `[num_seqs, length]`), same shape but for a
    single sequence: `[length]`."""
    blocks = block_tables.gather(1, tokens // block_size)
    slots = blocks.long() * block_size + tokens % block_size
    if len(slots) > 1:
        return slots
    [slots] = slots
    if slots.device.type == "cpu" and bool((slots.diff() == 1).all()):
        return slice(int(slots[0]), int(slots[-1]) + 1)
    return slots


def _dtype(context: ForwardContext) -> torch.dtype:
    return context.kv_caches[0].k.dtype
