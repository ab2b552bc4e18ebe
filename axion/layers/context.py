"""What one engine step passes down to attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from axion.layers.kv_format import KVEntries, KVFormat

T = TypeVar("T")


class KVCacheSpec(NamedTuple):
    """What one layer keeps in the KV cache: its entry's shape, per token, and for how long.

    Attributes:
        values_in_keys: a value is the beginning of its key, and is not kept again.
        window: tokens that a token attends to at most, itself included; None: all of them.
        stride: tokens to an entry; where they are several, the entry is that of the last of them,
            and a value in its key is as long as this.
        num_pieces: slots of tokens that an entry is cut into; see `in_pieces`.
    """

    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    values_in_keys: bool = False
    window: int | None = None
    stride: int = 1
    num_pieces: int = 1

    @property
    def num_elements(self) -> int:
        """Numbers that are kept for one token."""
        head_dim = self.k_head_dim + (0 if self.values_in_keys else self.v_head_dim)
        return self.num_kv_heads * head_dim

    def in_pieces(self, block_size: int) -> KVCacheSpec:
        """The same with the shape that is kept for each token of a block.

        Of `stride` tokens one has an entry. It is cut into pieces that lie in its own slot and
        those before it, in the block of its last token: what a full block holds depends on nothing
        behind it. Nothing stays empty where the stride divides `block_size` and the entry; of a
        longer stride a block has room for one entry.
        """
        num_pieces = math.gcd(self.stride, block_size, self.k_head_dim, self.v_head_dim)
        return self._replace(
            k_head_dim=self.k_head_dim // num_pieces,
            v_head_dim=self.v_head_dim // num_pieces,
            num_pieces=num_pieces,
        )


NO_KV_CACHE = KVCacheSpec(0, 0, 0)
"""Of a layer that keeps no keys and values."""


class StateTensor(NamedTuple):
    """A tensor that one layer keeps of each sequence, however long that is.

    Attributes:
        dtype: None: the model's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


StateSpec = dict[str, StateTensor]
"""What one layer keeps of each sequence beside keys and values; empty: nothing."""

State = dict[str, Tensor]
"""The tensors of a `StateSpec`, `[num_slots, *shape]` each."""


class StateRun(NamedTuple):
    """Rows of one sequence over which a layer carries its state, from slot to slot.

    Attributes:
        first_row, num_rows: in the flat batch.
        source: slot that holds the state before them; slot 0 is all zeros.
        target: slot where the state after them goes.
        kept: another slot where it goes as well, to be found again.
        order: how many runs the sequence has before this one in the step.
    """

    first_row: int
    num_rows: int
    source: int
    target: int
    kept: int | None
    order: int


class KVCache(NamedTuple):
    """One layer's paged keys and values.

    Layers of different groups may share memory: no block is in the tables of two groups.

    Entries of consecutive slots are equally far apart, but not always side by side: a value may be
    the beginning of its key, and where groups differ in shape others may lie between.

    Attributes:
        k: `[num_blocks, block_size, num_kv_heads, k_head_dim]`, each entry contiguous.
        v: `[num_blocks, block_size, num_kv_heads, v_head_dim]`, each entry contiguous.
        group: the layer's, whose block tables and slots are meant for it.
        format: how entries are stored; None: as they are. With one, `k` and `v` are bytes, and
            their last dimension is the format's width.
        stride, num_pieces: as in `KVCacheSpec`. Entry i is found by the slot of its last token,
            `stride * (i + 1) - 1`.
    """

    k: Tensor
    v: Tensor
    group: int = 0
    format: KVFormat | None = None
    stride: int = 1
    num_pieces: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values as attention reads them."""
        return self.k.dtype if self.format is None else self.format.dtype

    @property
    def v_head_dim(self) -> int:
        """Numbers of a head's value, or of a piece of it."""
        return self.v.shape[3] - (0 if self.format is None else self.format.width(0))

    @property
    def keys(self) -> KVEntries:
        return KVEntries(self.k.view(-1, *self.k.shape[2:]), self.format, self.num_pieces)

    @property
    def values(self) -> KVEntries:
        return KVEntries(self.v.view(-1, *self.v.shape[2:]), self.format, self.num_pieces)

    def store(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Keep `[num_tokens, num_kv_heads, head_dim]` of each in these slots."""
        self.keys.store(slots, k)
        if self.v.data_ptr() != self.k.data_ptr():  # else values are in the keys
            self.values.store(slots, v)


class Addressed(NamedTuple):
    """Tensors of any size that a kernel finds by their addresses.

    Attributes:
        numbers: int64, what the kernel reads: addresses and sizes.
        tensors: what is there.
    """

    numbers: Tensor
    tensors: tuple[Tensor, ...]


@dataclass(slots=True)
class ForwardContext:
    """One step's flat token batch; an explicit argument down to attention, never a global.

    Sequences lie one after another; `query_lens` says how many rows each has. A sequence that
    decodes has one row, a chunk of a prompt has more, and both mix in any order.

    A step may be captured as a CUDA graph (`axion.engine.cuda_graph`), and is then replayed with
    other values in the same tensors. In such a step every sequence has one token, so `query_lens`
    stays what it is; `context_lens_list` is what each length may become at most, and `block_tables`
    is wide enough for that. A layer must not read more of the lengths on the host than this bound,
    and no tensor's values, which would wait for the device anyway. What `block_tables` holds
    beyond a sequence's context has no meaning.

    Attributes:
        positions: `[num_tokens]` int64, index of each token in its own sequence.
        rope_lengths: `[num_tokens]` int64, length of the sequence that a length-dependent rope
            sees for this token: `max(num_prompt_tokens, position + 1)`.
        slot_mapping: `[num_groups, num_tokens]` int64, where this token's key and value go in the
            layers of a group: `block * block_size + offset`.
        block_tables: `[num_groups, num_seqs, max_blocks]` int32 or int64, padded with 0; 0 also
            for blocks behind a group's window.
        context_lens: `[num_seqs]` int64, tokens of each sequence in the KV cache after this step.
        query_lens: tokens of each sequence in this step, on the host so that nothing waits for
            the device.
        context_lens_list: `context_lens` on the host; bounds of them while a graph is captured.
        kv_caches: one per layer, and behind them those that layers have besides.
        block_size: tokens in a block.
        batch_invariant: attention must give a token the same bits in every batch and chunk; rows
            behind those of all sequences are padding.
        states: one per layer, of a model that has any.
        state_runs: all rows, cut where a layer that keeps a state writes it.
    """

    positions: Tensor
    rope_lengths: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    context_lens: Tensor
    query_lens: list[int]
    context_lens_list: list[int]
    kv_caches: list[KVCache]
    block_size: int
    batch_invariant: bool = False
    states: list[State] = field(default_factory=list)
    state_runs: list[StateRun] = field(default_factory=list)
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, build: Callable[[ForwardContext], T]) -> T:
        """`build(self)`, computed by the first layer that asks and shared by all others."""
        if key not in self._derived:
            self._derived[key] = self.each_step(build)
        return cast(T, self._derived[key])

    def each_step(self, build: Callable[[ForwardContext], T]) -> T:
        """`build(self)`, what layers need of this step and of no other: tensors of equal shapes in
        steps of as many tokens, or `Addressed` ones, or a tuple of such.

        On a CPU nothing else of a step is there when it is recorded, and where that is replayed
        this is computed anew (`axion.layers.cpu_kernels.recording`).
        """
        return build(self)
