"""Attention of each token to those tokens or entries alone that are chosen for it."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.attention.group_attention import Caches, attend_decode
from axion.layers.attention.options import AttentionOptions
from axion.layers.attention.slots import token_sequences, token_slots
from axion.layers.attention.step_groups import MAX_SCORES, Decode, additive
from axion.layers.context import ForwardContext


def attend_chosen(
    q: Tensor, caches: Caches, context: ForwardContext, options: AttentionOptions
) -> Tensor:
    """Each token as a sequence of its own, of the tokens or entries that are chosen for it."""
    chosen, compressed = options.chosen, options.compressed
    seqs = context.once(token_sequences, token_sequences)
    positions = context.positions[:, None, None]
    if chosen is None:  # of the tokens those in the window
        assert options.window is not None
        chosen = context.positions[:, None] - torch.arange(options.window, device=q.device)
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
    mask = additive(hidden, q.dtype)[:, :, None]
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
        out[rows] = attend_decode(q[rows], caches, group, options)
    return out


def _ends(
    entries: Tensor, stride: int, positions: Tensor, padding: Tensor
) -> tuple[Tensor, Tensor]:
    """The last token of each entry, and whether the token at `positions` does not see the entry:
    then it is `padding`."""
    ends = entries * stride + (stride - 1)
    hidden = (entries < 0) | (ends > positions)
    return torch.where(hidden, padding, ends), hidden
