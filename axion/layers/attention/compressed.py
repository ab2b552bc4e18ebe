"""Entries of the KV cache that are made of several tokens each, as in DeepSeek-V4.

What an entry is made of, such as a key and a gate of each of its tokens, is in a KV cache of its
own, with a window as long as is needed for one entry. So there is no state beside the caches: the
tokens of an entry may come in any chunks, from the prefix cache, or again.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from axion.layers.attention.slots import token_sequences, token_slots
from axion.layers.context import ForwardContext, KVCache
from axion.layers.transfer import to_device


class EntryInputs(NamedTuple):
    """What the entries that a step stores are made of.

    Attributes:
        rows: as of `entry_rows`.
        starts: `[num_entries]`, the position of its first token.
        slots: `[num_entries, length]`, where its tokens' inputs are, and of those before it.
    """

    rows: Tensor
    starts: Tensor
    slots: Tensor


def entry_rows(entries: KVCache, context: ForwardContext) -> Tensor:
    """The rows in the flat batch of the last tokens of those entries that a step stores,
    `[num_entries]`.

    These are those whose last token the step computes, and of each sequence the one that its last
    token lies in: nobody sees that before it is complete, but its place holds the sequence's own
    numbers from then on, and in a step of decoding the host need not know who completes one.
    """
    build = partial(_entry_rows, stride=entries.stride)
    return context.once((entry_rows, entries.stride), build)


def entry_inputs(
    inputs: KVCache, entries: KVCache, context: ForwardContext, *, length: int
) -> EntryInputs:
    """What the step's entries are made of, each of `length` tokens up to its last.

    Tokens before the sequence's first, and in an entry that is not complete those behind its last,
    are replaced by others of the sequence.

    Args:
        inputs: with a window of `length`; the step's are stored.
        entries: where `slot_mapping` at the rows says where each is to be stored.
    """
    build = partial(_entry_inputs, inputs=inputs, entries=entries, length=length)
    return context.once((entry_inputs, inputs.group, entries.stride, length), build)


def _entry_inputs(
    context: ForwardContext, *, inputs: KVCache, entries: KVCache, length: int
) -> EntryInputs:
    rows, stride = entry_rows(entries, context), entries.stride
    positions = context.positions[rows, None]
    starts = positions // stride * stride
    tokens = starts + torch.arange(stride - length, stride, device=rows.device)
    seqs = context.once(token_sequences, token_sequences)[rows]
    slots = token_slots(
        context.block_tables[inputs.group][seqs],
        torch.minimum(tokens.clamp(min=0), positions),
        context.block_size,
    )
    return EntryInputs(rows, starts[:, 0], slots)


def _entry_rows(context: ForwardContext, *, stride: int) -> Tensor:
    device = context.positions.device
    last_rows: list[int] = []
    row = 0
    for query_len, context_len in zip(context.query_lens, context.context_lens_list, strict=True):
        start = context_len - query_len
        first = row + stride - 1 - start % stride
        row += query_len
        last_rows += [*range(first, row - 1, stride), row - 1]
    if len(last_rows) == row:  # every sequence has one token
        return torch.arange(row, device=device)
    return to_device(np.array(last_rows), device)
