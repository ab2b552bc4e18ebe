"""Paged attention in plain torch, for any device.

The step's sequences fall into groups, one attention call each: all sequences with a single new
token together, padded to the longest, and every longer chunk on its own, or piece by piece. What
the calls need besides q, k and v (rows, slots, masks) depends on the step and on the layer's
window, so it is built once and shared by the layers that are alike. Keys before the window are not
read. Padding repeats a sequence's own tokens, never another sequence's: a NaN in one sequence
stays there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.context import ForwardContext, KVCache
from axion.layers.contiguous_kv import LENGTH_MULTIPLE, ContiguousStep
from axion.layers.kv_format import SlotRun
from axion.layers.transfer import to_device

# A chunk under a window is cut into pieces of the window's size, so that each reads few keys, but
# not into smaller ones.
_MIN_ROWS = 128
# What torch's own attention does not compute is cut to so many scores a piece (64 MiB).
MAX_SCORES = 2**24
# Of a chunk in bfloat16 on a CPU: scores that fit in its caches, and rows that are worth a product.
_BLOCK_SCORES = 2**21
_BLOCK_ROWS = (16, 128)
# Numbers of keys that its blocks see: keys are copied for each, and oneDNN makes a kernel.
_BLOCK_LENGTHS = 8
# From so many keys of a head on, two products for all sequences are faster than torch's own
# attention.
_MIN_PRODUCTS = 256


@dataclass(frozen=True, slots=True)
class Decode:
    """Sequences of one new token each.

    Attributes:
        rows: their rows in the flat batch; None means all rows in order.
        slots: `[batch, length]`, where the tokens that they see lie in the KV cache; or
            `[batch, num_kv_heads, length]`; or rows of contiguous copies of them.
        mask: `[batch, 1 or num_kv_heads, 1, length]`, additive.
        distances: `[batch, 1, 1, 1, length]`, from each token to those that it sees; at most 0.
        compressed: slots of compressed entries that they see as well, `[batch, num_entries]`; the
            mask is for these, too, behind the tokens.
    """

    rows: Tensor | None
    slots: Tensor | SlotRun | ContiguousStep
    mask: Tensor
    distances: Tensor
    compressed: Tensor | None = None
    _head_slots: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def head_slots(self, num_heads: int) -> Tensor:
        """`slot * num_heads + head`, `[batch * num_heads, length]`, of slots for all heads."""
        if num_heads not in self._head_slots:
            assert isinstance(self.slots, Tensor), "a run has one sequence"
            heads = torch.arange(num_heads)[:, None]
            self._head_slots[num_heads] = (self.slots[:, None] * num_heads + heads).flatten(0, 1)
        return self._head_slots[num_heads]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Several new tokens of one sequence.

    Attributes:
        slots: `[length]`, where the tokens that they see lie in the KV cache, in order.
        mask: `[query_len, length]`, additive; None: a token sees itself and all before it.
        positions: `[query_len, 1]`.
        tokens: `[length]`, positions of those that they see.
        compressed: `[num_entries]`, as in `Decode`; there is a mask then.
    """

    rows: slice
    slots: Tensor | SlotRun
    mask: Tensor | None
    positions: Tensor
    tokens: Tensor
    compressed: Tensor | None = None

    @property
    def distances(self) -> Tensor:
        """`[query_len, length]`, from each token to those that it sees."""
        return self.tokens - self.positions


GroupT = TypeVar("GroupT", Decode, Chunk)


class Compressed(NamedTuple):
    """Entries that stand for several tokens each, which tokens attend to beside a window.

    A token sees those whose last token is not behind it.

    Attributes:
        cache: of as many heads of the same sizes as the tokens'; what is to be in it is.
        chosen: `[num_tokens, num_chosen]` int64, the entries that a token attends to, and to no
            others (see `choose_tokens`); those that it does not see, and negative ones, are left
            out. None: to all that it sees.
    """

    cache: KVCache
    chosen: Tensor | None = None


class _Caches(NamedTuple):
    """Where keys and values are read."""

    own: KVCache
    compressed: KVCache | None

    def has_heads_apart(self, group: Decode) -> bool:
        """Whether `by_head` gives what they see, which is not so of heads with slots of their own
        and of two caches."""
        if isinstance(group.slots, Tensor):
            return group.slots.ndim == 2 and group.compressed is None
        return isinstance(group.slots, ContiguousStep)

    def by_head(self, group: Decode) -> tuple[Tensor, Tensor]:
        """`[batch, num_kv_heads, length, head_dim]` of each, contiguous."""
        keys, values = self.own.keys, self.own.values
        if isinstance(group.slots, ContiguousStep):
            assert self.own.contiguous is not None
            return self.own.contiguous.read(keys, values, group.slots)
        assert isinstance(group.slots, Tensor), "of a run nothing is gathered"
        head_slots = group.head_slots(keys.num_heads)
        k, v = (x.gather_heads(group.slots, head_slots) for x in (keys, values))
        heads = (len(group.slots), keys.num_heads)
        return k.unflatten(0, heads), v.unflatten(0, heads)

    def by_token(self, group: Decode | Chunk) -> tuple[Tensor, Tensor]:
        """`[..., length, num_kv_heads, head_dim]` of each, those of compressed entries last."""
        if isinstance(group.slots, ContiguousStep):
            assert isinstance(group, Decode)
            k, v = self.by_head(group)
            return k.transpose(1, 2), v.transpose(1, 2)
        own = self.own.keys, self.own.values
        if isinstance(group.slots, Tensor) and group.slots.ndim == 3:
            k, v = (entries.gather_by_head(group.slots) for entries in own)
        else:
            k, v = (entries.gather(group.slots) for entries in own)
        if self.compressed is None or group.compressed is None:
            return k, v
        of_entries = self.compressed.keys, self.compressed.values
        more_k, more_v = (entries.gather(group.compressed) for entries in of_entries)
        return torch.cat((k, more_k), dim=-3), torch.cat((v, more_v), dim=-3)


class Scores(NamedTuple):
    """What becomes of the products of queries and keys; see `paged_attention`."""

    scale: float
    softcap: float | None
    sinks: Tensor | None
    alibi_slopes: Tensor | None

    @property
    def is_plain(self) -> bool:
        """Whether torch's own attention computes it."""
        return self.softcap is None and self.sinks is None and self.alibi_slopes is None


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
    if k is not None and v is not None:
        cache.store(context.slot_mapping[cache.group], k, v)
    scores = Scores(scale, softcap, sinks, alibi_slopes)
    caches = _Caches(cache, None if compressed is None else compressed.cache)
    if chosen is not None or (compressed is not None and compressed.chosen is not None):
        return _attend_chosen(q, caches, chosen, window, compressed, context, scores)
    max_scores = None if scores.is_plain else MAX_SCORES // q.shape[1]
    entries = None if compressed is None else (compressed.cache.group, compressed.cache.stride)
    copied = cache.contiguous is not None and (window, chunk, compressed) == (None, None, None)
    groups = context.once(
        (attention_groups, cache.group, window, chunk, max_scores, entries, copied),
        partial(
            attention_groups,
            kv_group=cache.group,
            window=window,
            chunk=chunk,
            max_scores=max_scores,
            compressed=entries,
            copied=copied,
        ),
    )
    out = q.new_empty(*q.shape[:2], cache.values.head_dim)
    for group in groups:
        if isinstance(group, Chunk):
            out[group.rows] = _attend_chunk(q[group.rows], caches, group, scores)
        elif group.rows is None:
            return _attend_decode(q, caches, group, scores)
        else:
            out[group.rows] = _attend_decode(q[group.rows], caches, group, scores)
    return out


def _attend_decode(q: Tensor, caches: _Caches, group: Decode, scores: Scores) -> Tensor:
    # The heads that share a kv head become rows of one query: no copies of keys and values.
    q = q.unflatten(1, (caches.own.keys.num_heads, -1))
    suits_products = scores.is_plain and _suits_blocks(q.device, q.dtype)
    are_worth_it = q.shape[2] == 1 or len(q) * group.mask.shape[-1] >= _MIN_PRODUCTS
    if suits_products and are_worth_it and caches.has_heads_apart(group):
        return _attend_rows(q, *caches.by_head(group), group.mask, scores.scale)
    k, v = (x.transpose(1, 2) for x in caches.by_token(group))
    if suits_products and q.shape[2] == 1:
        # Products with a single row are slow in bfloat16: three times, measured with AVX-512.
        q, k, v, mask = (x.float() for x in (q, k, v, group.mask))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scores.scale)
        out = out.bfloat16()
    elif scores.is_plain:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scores.scale)
    else:
        mask = group.mask[..., None, :]
        out = _attend(q[..., None, :], k, v, mask, group.distances, scores).squeeze(-2)
    return out.flatten(1, 2)


def _attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of many sequences' single tokens, as two products.

    Args:
        q: `[batch, num_kv_heads, heads_per_kv_head, head_dim]`.
        k: `[batch, num_kv_heads, length, head_dim]`, contiguous: or it would be copied.
        v: `[batch, num_kv_heads, length, v_head_dim]`, contiguous.
        mask: as in `Decode`.

    Returns:
        `[batch, num_heads, v_head_dim]`.
    """
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    x = torch.baddbmm(q.new_zeros(1), q.flatten(0, 1), k.transpose(1, 2), beta=0, alpha=scale)
    x = x.unflatten(0, q.shape[:2]).add_(mask).softmax(-1)
    return torch.bmm(x.flatten(0, 1), v).view(len(q), -1, v.shape[-1])


def _attend_chosen(
    q: Tensor,
    caches: _Caches,
    chosen: Tensor | None,
    window: int | None,
    compressed: Compressed | None,
    context: ForwardContext,
    scores: Scores,
) -> Tensor:
    """Each token as a sequence of its own, of the tokens or entries that are chosen for it."""
    seqs = context.once(token_sequences, token_sequences)
    positions = context.positions[:, None, None]
    if chosen is None:  # of the tokens those in the window
        assert window is not None
        chosen = context.positions[:, None] - torch.arange(window, device=q.device)
    # [num_tokens, 1 or num_kv_heads, num_chosen].
    tokens, hidden = _ends(chosen.view(len(q), -1, chosen.shape[-1]), 1, positions, positions)
    distances = (tokens - positions)[:, :, None, None]
    seen = [(caches.own, tokens)]
    if compressed is not None:
        assert compressed.chosen is not None
        # Of the entries only those are stored that end in the step, and the last token's.
        last = context.context_lens[seqs, None, None] - 1
        entries, stride = compressed.chosen[:, None], compressed.cache.stride
        ends, is_hidden = _ends(entries, stride, positions, last)
        seen.append((compressed.cache, ends))
        hidden = torch.cat((hidden, is_hidden), dim=-1)
    mask = _additive(hidden, q.dtype)[:, :, None]
    out = q.new_empty(*q.shape[:2], caches.own.values.head_dim)
    max_rows = max(1, MAX_SCORES // (hidden.shape[-1] * caches.own.k.shape[2] * q.shape[2]))
    for start in range(0, len(q), max_rows):
        rows = slice(start, start + max_rows)
        slots, *more_slots = (
            token_slots(
                context.block_tables[cache.group][seqs[rows]],
                x[rows].flatten(1),
                context.block_size,
            )
            .view(x[rows].shape)
            .squeeze(1)
            for cache, x in seen
        )
        group = Decode(None, slots, mask[rows], distances[rows], *more_slots)
        out[rows] = _attend_decode(q[rows], caches, group, scores)
    return out


def _ends(
    entries: Tensor, stride: int, positions: Tensor, padding: Tensor
) -> tuple[Tensor, Tensor]:
    """The last token of each entry, and whether the token at `positions` does not see the entry:
    then it is `padding`."""
    ends = entries * stride + (stride - 1)
    hidden = (entries < 0) | (ends > positions)
    return torch.where(hidden, padding, ends), hidden


def _attend_chunk(q: Tensor, caches: _Caches, chunk: Chunk, scores: Scores) -> Tensor:
    # kv heads as the batch, and the query heads of each as its heads: expand copies nothing.
    k, v = (x.transpose(0, 1) for x in caches.by_token(chunk))
    q = q.transpose(0, 1).unflatten(0, (k.shape[0], -1))
    if scores.is_plain and chunk.compressed is None and _suits_blocks(q.device, q.dtype):
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
        out = _attend(q, k, v, chunk.mask, chunk.distances, scores)
    return out.flatten(0, 1).transpose(0, 1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, distances: Tensor, scores: Scores
) -> Tensor:
    """Attention with all that `scores` asks for, in float32.

    Args:
        q: `[..., num_kv_heads, heads_per_kv_head, query_len, head_dim]`.
        k: `[..., num_kv_heads, length, head_dim]`.
        v: `[..., num_kv_heads, length, v_head_dim]`.
        mask: additive, of the shape `[..., query_len, length]`; None: causal.
        distances: of that shape, too.

    Returns:
        `[..., num_kv_heads, heads_per_kv_head, query_len, v_head_dim]`.
    """
    rows = q.shape[-3:-1]
    x = (q.flatten(-3, -2) @ k.transpose(-1, -2)).float().unflatten(-2, rows) * scores.scale
    if scores.softcap is not None:
        x = scores.softcap * torch.tanh(x / scores.softcap)
    if scores.alibi_slopes is not None:
        x = x + scores.alibi_slopes.float().view(*q.shape[-4:-2], 1, 1) * distances
    if mask is None:
        mask = x.new_full(x.shape[-2:], float("-inf")).triu(1)
    x = x + mask
    out = (x.softmax(-1).to(v.dtype).flatten(-3, -2) @ v).unflatten(-2, rows)
    if scores.sinks is not None:
        # The share of the softmax's sum that is not the sink's.
        sinks = scores.sinks.float().view(*q.shape[-4:-2], 1, 1)
        out = out * torch.sigmoid(x.logsumexp(-1, keepdim=True) - sinks).to(out.dtype)
    return out


def _suits_blocks(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are faster than torch's own attention: for a chunk three times, measured
    with AVX-512; in float32 they are not."""
    return device.type == "cpu" and dtype == torch.bfloat16


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of a chunk a few rows at a time, over the keys that these can see, and few more.

    Scores are rounded to the number format of q, as they are where attention is written out.

    Args:
        q: `[num_kv_heads, heads_per_kv_head, query_len, head_dim]`.
        k: `[num_kv_heads, length, head_dim]`.
        v: `[num_kv_heads, length, v_head_dim]`.
        mask: as in `Chunk`.

    Returns:
        `[query_len, num_heads, v_head_dim]`.
    """
    (num_kv_heads, group, query_len, _), length = q.shape, k.shape[1]
    fewest, most = _BLOCK_ROWS
    step = min(max(_BLOCK_SCORES // (num_kv_heads * group * length), fewest), most)
    stride = step * -(-query_len // (step * _BLOCK_LENGTHS))
    hidden = torch.full((step, stride), float("-inf"), dtype=q.dtype).triu_(1)
    zero = torch.zeros(1, dtype=q.dtype)  # of which baddbmm takes nothing
    out = q.new_empty(query_len, num_kv_heads, group, v.shape[-1])
    for start in range(0, query_len, step):
        end = min(start + step, query_len)
        first = length - query_len + start
        if start % stride == 0:
            seen = min(first + stride, length)
            keys, values = k[:, :seen].contiguous().transpose(1, 2), v[:, :seen].contiguous()
        rows = q[:, :, start:end].flatten(1, 2)
        x = torch.baddbmm(zero, rows, keys, beta=0, alpha=scale)
        x = x.unflatten(1, (group, end - start))
        if mask is None:
            x[..., first:] += hidden[: end - start, : seen - first]
        else:
            x += mask[start:end, :seen]
        x = torch.bmm(x.softmax(-1).flatten(1, 2), values)
        out[start:end] = x.unflatten(1, (group, end - start)).permute(2, 0, 1, 3)
    return out.flatten(1, 2)


def attention_groups(
    context: ForwardContext,
    *,
    kv_group: int,
    window: int | None = None,
    chunk: int | None = None,
    max_scores: int | None = None,
    stride: int = 1,
    compressed: tuple[int, int] | None = None,
    copied: bool = False,
) -> list[Decode | Chunk]:
    """What attention to the tokens of a group needs, or to its entries of `stride` tokens each.

    Args:
        window, chunk: as in `paged_attention`; not of entries.
        max_scores: of a piece, at most; None: pieces are as large as a window.
        compressed: group and stride of entries that are seen besides.
        copied: sequences of one new token may be read from contiguous copies.
    """
    device = context.positions.device
    reach = window or chunk
    has_entries = stride > 1 or compressed is not None
    is_masked = max_scores is not None or not _suits_blocks(device, _dtype(context))
    # What is attended to: its group, how far back, and the tokens of an entry.
    seen = [(kv_group, reach, chunk, stride)]
    if compressed is not None:
        seen.append((compressed[0], None, None, compressed[1]))
    groups: list[Decode | Chunk] = []
    decodes: list[int] = []
    decode_rows: list[int] = []
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len == 1:
            decodes.append(seq)
            decode_rows.append(row)
        else:
            context_len = context.context_lens_list[seq]
            max_rows = query_len if reach is None else max(reach, _MIN_ROWS)
            if max_scores is not None:
                length = context_len if reach is None else min(context_len, max_rows + reach)
                length = max(1, length // stride)
                if compressed is not None:
                    length += context_len // compressed[1]
                max_rows = min(max_rows, max(1, max_scores // length))
            first = context_len - query_len
            for start in range(first, context_len, max_rows):
                end = min(start + max_rows, context_len)
                at = (seq, row + start - first, start, end)
                needs_mask = has_entries or (is_masked and start > 0)
                groups.append(
                    _joined([_chunk(context, *at, *part, needs_mask=needs_mask) for part in seen])
                )
        row += query_len
    if decodes:
        step = None
        if copied and kv_group in context.contiguous_rows:
            take = partial(_take_rows, kv_group=kv_group, seqs=decodes)
            step = context.once((_take_rows, kv_group), take)
        if step is not None:
            row_of = dict(zip(decodes, decode_rows, strict=True))
            groups.append(_decode_copies(context, [row_of[seq] for seq in step.order], step))
        else:
            rows = decode_rows if groups else None
            groups.append(_joined([_decode(context, decodes, rows, *part) for part in seen]))
    return groups


def _take_rows(context: ForwardContext, kv_group: int, seqs: list[int]) -> ContiguousStep | None:
    return context.contiguous_rows[kv_group].take(
        seqs, context.context_lens_list, context.block_tables[kv_group], context.block_size
    )


def _decode_copies(context: ForwardContext, rows: list[int], step: ContiguousStep) -> Decode:
    """The sequences of copies, whose rows in the batch are these."""
    distances = torch.arange(step.length) - (step.context_lens[:, None] - 1)
    is_in_order = rows == list(range(len(context.positions)))
    return Decode(
        rows=None if is_in_order else torch.tensor(rows),
        slots=step,
        mask=_additive(distances > 0, _dtype(context))[:, None, None],
        distances=distances[:, None, None, None],
    )


def _joined(parts: list[GroupT]) -> GroupT:
    """Attention to what the first part is about, and to the entries of the second, if any."""
    first, *others = parts
    for other in others:
        assert first.mask is not None
        assert other.mask is not None
        mask = torch.cat((first.mask, other.mask), dim=-1)
        first = replace(first, mask=mask, compressed=other.slots)
    return first


def _decode(
    context: ForwardContext,
    seqs: list[int],
    rows: list[int] | None,
    kv_group: int,
    reach: int | None,
    chunk: int | None,
    stride: int,
) -> Decode:
    device = context.positions.device
    tables, context_lens = context.block_tables[kv_group], context.context_lens
    if rows is not None:
        index = to_device(np.array(seqs), device)
        tables, context_lens = tables[index], context_lens[index]
    lengths = context_lens[:, None]
    longest = max(context.context_lens_list[seq] for seq in seqs)
    if _suits_blocks(device, _dtype(context)):
        longest = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    if reach is None or reach >= longest:
        tokens = torch.arange(longest // stride, device=device) * stride + (stride - 1)
    else:
        tokens = torch.arange(reach, device=device) + (lengths - reach).clamp(min=0)
    hidden = tokens >= lengths
    if chunk is not None:
        hidden |= tokens < (lengths - 1) // chunk * chunk
    slots = token_slots(tables, torch.minimum(tokens, lengths - 1), context.block_size)
    return Decode(
        rows=None if rows is None else to_device(np.array(rows), device),
        slots=_run(slots) if stride == 1 else slots,
        mask=_additive(hidden, _dtype(context))[:, None, None],
        distances=(tokens - lengths + 1)[:, None, None, None],
    )


def _chunk(
    context: ForwardContext,
    seq: int,
    row: int,
    start: int,
    end: int,
    kv_group: int,
    reach: int | None,
    chunk: int | None,
    stride: int,
    *,
    needs_mask: bool,
) -> Chunk:
    """The sequence's tokens from `start` up to `end`, of which the first is the batch's `row`.

    Args:
        reach: none of them sees more tokens than so many, itself included.
        needs_mask: although each sees all tokens up to itself.
    """
    device = context.positions.device
    rows = slice(row, row + end - start)
    first = 0 if reach is None else max(0, start - reach + 1)
    tokens = torch.arange(first, end // stride, device=device) * stride + (stride - 1)
    positions = context.positions[rows, None]
    mask = None
    if needs_mask or (reach is not None and end > reach):
        hidden = tokens > positions
        if chunk is not None:
            hidden |= tokens < positions // chunk * chunk
        elif reach is not None:
            hidden |= tokens <= positions - reach
        mask = _additive(hidden, _dtype(context))
    tables = context.block_tables[kv_group][seq : seq + 1]
    slots = token_slots(tables, tokens[None], context.block_size)[0]
    return Chunk(rows, _run(slots) if stride == 1 else slots, mask, positions, tokens)


def token_sequences(context: ForwardContext) -> Tensor:
    """Index of each token's sequence, `[num_tokens]`."""
    device = context.positions.device
    if max(context.query_lens) == 1:
        return torch.arange(len(context.query_lens), device=device)
    counts = to_device(np.array(context.query_lens), device)
    return torch.arange(len(counts), device=device).repeat_interleave(
        counts, output_size=sum(context.query_lens)
    )


def token_slots(block_tables: Tensor, tokens: Tensor, block_size: int) -> Tensor:
    """Slots of `tokens` (indices in their sequence, `[num_seqs, length]`), same shape."""
    blocks = block_tables.gather(1, tokens // block_size)
    return blocks.long() * block_size + tokens % block_size


def _run(slots: Tensor) -> Tensor | SlotRun:
    """The same as a run, if it is one and on a CPU."""
    is_run = slots.device.type == "cpu" and slots.numel() == slots.shape[-1]
    if is_run and bool((slots.diff() == 1).all()):
        return SlotRun(int(slots.flatten()[0]), slots.shape)
    return slots


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that hides what is true."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))


def _dtype(context: ForwardContext) -> torch.dtype:
    return context.kv_caches[0].dtype
