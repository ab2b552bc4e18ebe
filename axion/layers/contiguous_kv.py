"""Contiguous copies of what the paged KV cache holds of sequences that decode, kept from step to
step: a step copies one token of each sequence where it would gather all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from axion.layers.kv_format import KVEntries

# Tokens of a row are a multiple of this: oneDNN makes a kernel of its own for each length, and all
# rows are copied anew when it changes.
LENGTH_MULTIPLE = 32
# They are copied anew as well when no more than this share of a row would be needed.
_MIN_SHARE = 0.75


class CopiedSlots(NamedTuple):
    """What a layer copies in a step.

    Attributes:
        targets: `[num_kv_heads * num_tokens]`, which heads of rows' tokens.
        slots: `[1, num_tokens]`, where they lie in the KV cache.
        head_slots: `[num_kv_heads, num_tokens]`, `slot * num_kv_heads + head`.
    """

    targets: Tensor
    slots: Tensor
    head_slots: Tensor


@dataclass(frozen=True, slots=True)
class ContiguousStep:
    """The rows in one step.

    Attributes:
        number: counts such steps.
        length: tokens of a row. Those behind its sequence's are copies of the first: a NaN stays
            in its own sequence.
        order: the sequence of each row, by its index in the step.
        missing: of each row, the first token that the step before has not left there, and the one
            behind the last.
        block_tables: of each row, `[num_rows, max_blocks]`.
        context_lens: of each row, `[num_rows]`.
    """

    number: int
    length: int
    order: list[int]
    missing: list[tuple[int, int]]
    block_tables: Tensor
    context_lens: Tensor
    block_size: int
    _copied: dict[tuple[int, bool], CopiedSlots] = field(
        default_factory=dict, init=False, repr=False
    )

    def copied(self, num_kv_heads: int, *, is_behind: bool) -> CopiedSlots:
        """What is missing in a layer of so many heads; all, if it was not in the step before."""
        key = (num_kv_heads, is_behind)
        if key not in self._copied:
            num_rows = len(self.order)
            spans = [(0, self.length)] * num_rows if is_behind else self.missing
            starts, ends = torch.tensor(spans).unbind(1)
            counts = ends - starts
            rows = torch.arange(num_rows).repeat_interleave(counts)
            tokens = torch.arange(len(rows)) + (starts - counts.cumsum(0) + counts)[rows]
            sources = torch.where(tokens < self.context_lens[rows], tokens, 0)
            blocks = self.block_tables[rows, sources // self.block_size]
            slots = blocks.long() * self.block_size + sources % self.block_size
            heads = torch.arange(num_kv_heads)[:, None]
            targets = (rows * num_kv_heads + heads) * self.length + tokens
            self._copied[key] = CopiedSlots(
                targets.flatten(), slots[None], slots * num_kv_heads + heads
            )
        return self._copied[key]


@dataclass(slots=True)
class _Row:
    """Attributes:
    num_valid: tokens of its sequence that it has.
    end: behind the last token that may be another than the KV cache has now.
    """

    sequence_id: int
    num_valid: int
    end: int


class ContiguousRows:
    """Which sequence has which row, and how many of its tokens. Layers of a group share this.

    Rows are as long as the longest sequence needs, and lie dense: a step has the first of them.

    Args:
        max_tokens: of all rows.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._length = 0
        self._number = 0
        self._rows: list[_Row] = []
        self._sequence_ids: list[int] = []

    def begin(self, sequence_ids: list[int], starts: list[int]) -> None:
        """A step of these sequences, whose tokens from `starts` on are computed, perhaps anew.

        Args:
            sequence_ids: what no sequence before had.
        """
        self._sequence_ids = sequence_ids
        start_of = dict(zip(sequence_ids, starts, strict=True))
        for row in self._rows:
            row.num_valid = min(row.num_valid, start_of.get(row.sequence_id, row.num_valid))

    def take(
        self,
        sequences: list[int],
        context_lens: list[int],
        block_tables: Tensor,
        block_size: int,
    ) -> ContiguousStep | None:
        """Rows for sequences that decode; None: there is no room for them.

        Args:
            sequences: their indices in the step.
            context_lens: of all sequences of the step.
            block_tables: of all, `[num_seqs, max_blocks]`.
        """
        longest = max(context_lens[index] for index in sequences)
        needed = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        if needed * len(sequences) > self._max_tokens:
            return None
        max_length = min(needed / _MIN_SHARE, self._max_tokens / len(sequences))
        if not needed <= self._length <= max_length:
            self._length = needed
            self._rows.clear()
        del self._rows[len(sequences) :]
        index_of = {self._sequence_ids[index]: index for index in sequences}
        present = {row.sequence_id for row in self._rows}
        joining = [_Row(id, 0, self._length) for id in index_of if id not in present]
        for place, row in enumerate(self._rows):
            if row.sequence_id not in index_of:
                self._rows[place] = joining.pop()
        self._rows += joining
        order = [index_of[row.sequence_id] for row in self._rows]
        missing = []
        for row, index in zip(self._rows, order, strict=True):
            missing.append((row.num_valid, max(row.end, context_lens[index])))
            row.num_valid = row.end = context_lens[index]
        self._number += 1
        return ContiguousStep(
            self._number,
            self._length,
            order,
            missing,
            block_tables[order],
            torch.tensor([context_lens[index] for index in order]),
            block_size,
        )


class ContiguousKV:
    """A layer's copies, of whichever rows a step has.

    Args:
        max_tokens: as in `ContiguousRows`. Memory is taken as it is first used.
        k_shape, v_shape: `[num_kv_heads, head_dim]` of a token.
    """

    def __init__(
        self,
        max_tokens: int,
        k_shape: tuple[int, int],
        v_shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:
        self.max_tokens = max_tokens
        self._k = torch.empty(max_tokens * k_shape[0], k_shape[1], dtype=dtype)
        self._v = torch.empty(max_tokens * v_shape[0], v_shape[1], dtype=dtype)
        self._number = 0  # of the last step that it was in

    def read(
        self, keys: KVEntries, values: KVEntries, step: ContiguousStep
    ) -> tuple[Tensor, Tensor]:
        """`[num_rows, num_kv_heads, length, head_dim]` of each, for this step only.

        Args:
            keys, values: the layer's in the KV cache, with those of the step.
        """
        if self._number != step.number:
            is_behind = self._number != step.number - 1
            copied = step.copied(keys.num_heads, is_behind=is_behind)
            for own, entries in ((self._k, keys), (self._v, values)):
                new = entries.gather_heads(copied.slots, copied.head_slots)
                own.index_copy_(0, copied.targets, new.flatten(0, 1))
            self._number = step.number
        shape = (len(step.order), keys.num_heads, step.length)
        num_rows = prod(shape)
        return self._k[:num_rows].unflatten(0, shape), self._v[:num_rows].unflatten(0, shape)
