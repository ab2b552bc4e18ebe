"""Which of a step's sequences are attended to together, and what that needs besides q, k and v.

All sequences with a single new token are a group, padded to the longest, and every longer chunk is
one on its own, or piece by piece. Rows, slots and masks depend on the step and on the layer's
window, so they are built once and shared by the layers that are alike. Keys before the window are
not read. Padding repeats a sequence's own tokens, never another sequence's: a NaN in one sequence
stays there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from axion.layers.attention.products import products_are_faster
from axion.layers.attention.slots import as_run, token_slots
from axion.layers.context import ForwardContext
from axion.layers.kv_format import SlotRun
from axion.layers.transfer import to_device

# What torch's own attention does not compute is cut to so many scores a piece (64 MiB).
MAX_SCORES = 2**24
# Where products compute, keys of sequences that decode are padded to a multiple of so many: oneDNN
# makes a kernel of its own for each length.
_LENGTH_MULTIPLE = 32
# A chunk under a window is cut into pieces of the window's size, so that each reads few keys, but
# not into smaller ones.
_MIN_ROWS = 128


@dataclass(frozen=True, slots=True)
class Decode:
    """Sequences of one new token each.

    Attributes:
        rows: their rows in the flat batch; None means all rows in order.
        slots: `[batch, length]`, where the tokens that they see lie in the KV cache; or
            `[batch, num_kv_heads, length]`.
        mask: `[batch, 1 or num_kv_heads, 1, length]`, additive.
        distances: `[batch, 1, 1, 1, length]`, from each token to those that it sees; at most 0.
        compressed: slots of compressed entries that they see as well, `[batch, num_entries]`; the
            mask is for these, too, behind the tokens.
    """

    rows: Tensor | None
    slots: Tensor | SlotRun
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


def attention_groups(
    context: ForwardContext,
    *,
    kv_group: int,
    window: int | None = None,
    chunk: int | None = None,
    max_scores: int | None = None,
    stride: int = 1,
    compressed: tuple[int, int] | None = None,
    longer_than: int = 0,
) -> list[Decode | Chunk]:
    """What attention to the tokens of a group needs, or to its entries of `stride` tokens each.

    Args:
        window, chunk: as in `paged_attention`; not of entries.
        max_scores: of a piece, at most; None: pieces are as large as a window.
        compressed: group and stride of entries that are seen besides.
        longer_than: sequences with no more new tokens are left out.
    """
    device = context.positions.device
    reach = window or chunk
    has_entries = stride > 1 or compressed is not None
    is_masked = max_scores is not None or not products_are_faster(device, _dtype(context))
    # What is attended to: its group, how far back, and the tokens of an entry.
    seen = [(kv_group, reach, chunk, stride)]
    if compressed is not None:
        seen.append((compressed[0], None, None, compressed[1]))
    groups: list[Decode | Chunk] = []
    decodes: list[int] = []
    decode_rows: list[int] = []
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len <= longer_than:
            pass
        elif query_len == 1:
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
        rows = decode_rows if groups else None
        groups.append(_joined([_decode(context, decodes, rows, *part) for part in seen]))
    return groups


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
    if products_are_faster(device, _dtype(context)):
        longest = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
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
        slots=as_run(slots) if stride == 1 else slots,
        mask=additive(hidden, _dtype(context))[:, None, None],
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
        mask = additive(hidden, _dtype(context))
    tables = context.block_tables[kv_group][seq : seq + 1]
    slots = token_slots(tables, tokens[None], context.block_size)[0]
    return Chunk(rows, as_run(slots) if stride == 1 else slots, mask, positions, tokens)


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that hides what is true."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))


def _dtype(context: ForwardContext) -> torch.dtype:
    return context.kv_caches[0].dtype
