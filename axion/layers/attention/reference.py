"""Paged attention in plain torch, for any device.

The step's sequences fall into groups, one attention call each: all sequences with a single new
token together, padded to the longest, and every longer chunk on its own. What the calls need
besides q, k and v (rows, slots, masks) depends on the step alone, so it is built once and
shared by the layers. Padding repeats a sequence's own tokens, never another sequence's: a NaN
in one sequence stays there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.context import ForwardContext, KVCache


@dataclass(frozen=True, slots=True)
class _Decode:
    """Sequences of one new token each.

    Attributes:
        rows: their rows in the flat batch; None means all rows in order.
        slots: `[batch, length]`, where their tokens lie in the KV cache.
        mask: `[batch, 1, 1, length]`, additive.
    """

    rows: Tensor | None
    slots: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several new tokens of one sequence.

    Attributes:
        slots: `[length]`, where all its tokens lie in the KV cache.
        mask: `[query_len, length]`, additive; None where the chunk is the whole sequence, which
            is plain causal attention.
    """

    rows: slice
    slots: Tensor
    mask: Tensor | None


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, cache: KVCache, context: ForwardContext, *, scale: float
) -> Tensor:
    """Store the step's keys and values, then attend causally over each sequence's blocks.

    Args:
        q: `[num_tokens, num_heads, head_dim]`.
        k: `[num_tokens, num_kv_heads, head_dim]`.
        v: `[num_tokens, num_kv_heads, v_head_dim]`.
        scale: factor on the scores, usually `head_dim ** -0.5`.

    Returns:
        `[num_tokens, num_heads, v_head_dim]`.
    """
    keys, values = (x.view(-1, *x.shape[2:]) for x in cache)
    keys.index_copy_(0, context.slot_mapping, k)
    values.index_copy_(0, context.slot_mapping, v)
    groups = context.once(_groups, _groups)
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    for group in groups:
        if isinstance(group, _Chunk):
            out[group.rows] = _attend_chunk(q[group.rows], keys, values, group, scale)
        elif group.rows is None:
            return _attend_decode(q, keys, values, group, scale)
        else:
            out[group.rows] = _attend_decode(q[group.rows], keys, values, group, scale)
    return out


def _attend_decode(q: Tensor, keys: Tensor, values: Tensor, group: _Decode, scale: float) -> Tensor:
    # The heads that share a kv head become rows of one query: no copies of keys and values.
    out = F.scaled_dot_product_attention(
        q.unflatten(1, (keys.shape[1], -1)),
        _gather(keys, group.slots).transpose(1, 2),
        _gather(values, group.slots).transpose(1, 2),
        attn_mask=group.mask,
        scale=scale,
    )
    return out.flatten(1, 2)


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor, chunk: _Chunk, scale: float) -> Tensor:
    num_heads, num_kv_heads = q.shape[1], keys.shape[1]
    # kv heads as the batch, and the query heads of each as its heads: expand copies nothing.
    shape = (num_kv_heads, num_heads // num_kv_heads, -1, -1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unflatten(0, (num_kv_heads, -1)),
        _gather(keys, chunk.slots).transpose(0, 1)[:, None].expand(shape),
        _gather(values, chunk.slots).transpose(0, 1)[:, None].expand(shape),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
    )
    return out.flatten(0, 1).transpose(0, 1)


def _gather(cache: Tensor, slots: Tensor) -> Tensor:
    """Entries `[num_slots, num_kv_heads, head_dim]` at `slots`, of any shape."""
    # As an embedding: a whole entry is copied at once, many times faster than by indexing.
    return F.embedding(slots, cache.flatten(1)).unflatten(-1, cache.shape[1:])


def _groups(context: ForwardContext) -> list[_Decode | _Chunk]:
    groups: list[_Decode | _Chunk] = []
    decodes: list[int] = []
    decode_rows: list[int] = []
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len == 1:
            decodes.append(seq)
            decode_rows.append(row)
        else:
            groups.append(_chunk(context, seq, row, query_len))
        row += query_len
    if decodes:
        groups.append(_decode(context, decodes, decode_rows if groups else None))
    return groups


def _decode(context: ForwardContext, seqs: list[int], rows: list[int] | None) -> _Decode:
    device = context.positions.device
    tables, context_lens = context.block_tables, context.context_lens
    if rows is not None:
        index = torch.tensor(seqs, device=device)
        tables, context_lens = tables[index], context_lens[index]
    lengths = context_lens[:, None]
    tokens = torch.arange(max(context.context_lens_list[seq] for seq in seqs), device=device)
    mask = torch.zeros(len(seqs), len(tokens), dtype=_dtype(context), device=device)
    mask.masked_fill_(tokens >= lengths, float("-inf"))
    return _Decode(
        rows=None if rows is None else torch.tensor(rows, device=device),
        slots=_slots(tables, torch.minimum(tokens, lengths - 1), context.block_size),
        mask=mask[:, None, None],
    )


def _chunk(context: ForwardContext, seq: int, row: int, query_len: int) -> _Chunk:
    device = context.positions.device
    context_len = context.context_lens_list[seq]
    rows = slice(row, row + query_len)
    tokens = torch.arange(context_len, device=device)
    mask = None
    if context_len > query_len:
        mask = torch.zeros(query_len, context_len, dtype=_dtype(context), device=device)
        mask.masked_fill_(tokens > context.positions[rows, None], float("-inf"))
    slots = _slots(context.block_tables[seq : seq + 1], tokens[None], context.block_size)
    return _Chunk(rows, slots[0], mask)


def _slots(block_tables: Tensor, tokens: Tensor, block_size: int) -> Tensor:
    """Slots of `tokens` (indices in their sequence, `[num_seqs, length]`), same shape."""
    blocks = block_tables.gather(1, tokens // block_size)
    return blocks.long() * block_size + tokens % block_size


def _dtype(context: ForwardContext) -> torch.dtype:
    return context.kv_caches[0].k.dtype
