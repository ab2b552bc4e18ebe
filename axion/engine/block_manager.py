"""Which block of the KV cache belongs to whom: paging, reference counts, prefix reuse.

The idea is PagedAttention's (arXiv:2309.06180): sequences are cut into blocks of `block_size`
tokens, and a full block is found again by the chained hash of all tokens up to its end.

Layers that need keys and values for equally long form a group, and a sequence has one block table
for each group. All groups take their blocks from one pool. Of a group with a window a sequence
keeps what its next token can see, and gives the rest back while it goes on.
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable

from axion.engine.host_pool import HostPool
from axion.engine.sequence import Sequence
from axion.engine.state_slots import StateSlots


def num_window_blocks(window: int | None, block_size: int) -> int:
    """How many full blocks before it a token can see, of a group with this window."""
    return sys.maxsize if window is None else -(-(window - 1) // block_size)


def num_chunk_blocks(max_chunk: int, block_size: int) -> int:
    """Blocks that a chunk needs from the first one on that is not full before it."""
    return (block_size + max_chunk - 2) // block_size + 1


def max_blocks_held(
    num_tokens: int, *, windows: Iterable[int | None], max_chunk: int, block_size: int
) -> int:
    """Blocks that a sequence of so many tokens holds at most.

    Args:
        windows: of each group, how many tokens a token sees, itself included; None: all.
        max_chunk: tokens of one sequence that a step computes at most.
    """
    num_blocks = -(-num_tokens // block_size)
    chunk_blocks = num_chunk_blocks(max_chunk, block_size)
    return sum(
        min(num_blocks, num_window_blocks(window, block_size) + chunk_blocks) for window in windows
    )


BlockKey = tuple[int, bytes]
"""What a full block is found by: its group of layers, and its hash."""


class Block:
    """One block; what it holds can be reused while it has a hash.

    Attributes:
        group: the group of layers whose keys and values it holds.
    """

    __slots__ = ("block_hash", "block_id", "group", "ref_count", "token_ids")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.block_hash: bytes | None = None
        self.token_ids: list[int] = []
        self.group = 0


class BlockManager:
    """Allocates blocks to sequences and lets them share equal prefixes.

    A block is in use (`ref_count` > 0) or free. A free block keeps its content, and can be
    taken back by its hash, until it is allocated again; the least recently used goes first.

    With a window a sequence needs of its full blocks only the last few, as many as
    `num_window_blocks` says. Those before are given back, and a prefix can be reused without them.

    Attributes:
        num_ever_used: blocks from this one on have never been used.

    Args:
        num_blocks: blocks in the KV cache.
        block_size: tokens in a block.
        windows: of each group, the widest first; None: no window.
        max_chunk: tokens of one sequence that a step computes at most.
        states: slots for what layers keep instead of keys and values; None: there are no such.
        host: takes the content of free blocks that are allocated again; None: it is lost.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        windows: tuple[int | None, ...] = (None,),
        max_chunk: int = sys.maxsize,
        enable_prefix_caching: bool = True,
        states: StateSlots | None = None,
        host: HostPool | None = None,
    ) -> None:
        self.block_size = block_size
        self.windows = windows
        self.max_chunk = max_chunk
        self.enable_prefix_caching = enable_prefix_caching
        self.states = states
        self.host = HostPool(0) if host is None else host
        self.num_ever_used = 0
        self._blocks = [Block(i) for i in range(num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._window_blocks = [num_window_blocks(window, block_size) for window in windows]
        assert self._window_blocks == sorted(self._window_blocks, reverse=True)
        self._chunk_blocks = num_chunk_blocks(max_chunk, block_size)
        self._cached: list[dict[bytes, int]] = [{} for _ in windows]
        self._pending: dict[bytes, Sequence] = {}  # blocks that a running sequence computes

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_used_blocks(self) -> int:
        return len(self._blocks) - len(self._free)

    def max_blocks_held(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds at most."""
        return max_blocks_held(
            num_tokens,
            windows=self.windows,
            max_chunk=self.max_chunk,
            block_size=self.block_size,
        )

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence the blocks that it needs, shared ones where there are any.

        These are blocks for all its tokens; under a window as many as it will ever hold at once.
        Sets `num_computed_tokens` to what the prefix cache supplied. At least one token is
        left to compute, because sampling needs its logits. All or nothing: False when there are
        not enough free blocks, or when a running sequence is computing a block that this one
        could share in a moment.
        """
        assert not sequence.block_tables
        num_hits = self._match_prefix(sequence)
        if num_hits is None:
            return False
        starts, ends = self._starts(num_hits), self._ends(sequence.num_tokens, num_hits)
        held: list[int] = []  # what the prefix cache has on the device
        in_host: list[BlockKey] = []
        for group, (cached, start) in enumerate(zip(self._cached, starts, strict=True)):
            for block_hash in sequence.block_hashes[start:num_hits]:
                if (block_id := cached.get(block_hash)) is not None:
                    held.append(block_id)
                else:
                    in_host.append((group, block_hash))
        num_needed = sum(ends) - num_hits * len(ends) + len(in_host)
        num_held_in_free = sum(1 for block_id in held if self._blocks[block_id].ref_count == 0)
        if num_needed > len(self._free) - num_held_in_free:
            return False
        if self.states is not None and not self.states.admit(sequence, num_hits):
            return False
        for block_id in held:
            block = self._blocks[block_id]
            if block.ref_count == 0:
                del self._free[block_id]
            block.ref_count += 1
        if in_host:
            self._load(in_host)
        for cached, start, end in zip(self._cached, starts, ends, strict=True):
            row = [cached[block_hash] for block_hash in sequence.block_hashes[start:num_hits]]
            table = array("q", [0] * start + row)
            table.extend([self._take_free_block() for _ in range(num_hits, end)])
            sequence.block_tables.append(table)
        sequence.num_computed_tokens = num_hits * self.block_size
        sequence.num_full_blocks = num_hits
        for block_hash in sequence.block_hashes[num_hits:]:
            self._pending.setdefault(block_hash, sequence)
        if self.states is not None and self.enable_prefix_caching:
            self._keep_states(sequence, num_hits)
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for a running sequence's next step, as far as it goes towards so many tokens;
        False when no block is free."""
        tables = sequence.block_tables
        # No table is shorter than the last group's.
        if len(tables[-1]) * self.block_size >= num_tokens:
            return True
        ends = self._ends(num_tokens, sequence.num_full_blocks)
        if sum(ends) - sum(map(len, tables)) > len(self._free):
            return False
        for table, end in zip(tables, ends, strict=True):
            for _ in range(len(table), end):
                table.append(self._take_free_block())
        return True

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Give back the blocks that so many tokens do not need."""
        tables = sequence.block_tables
        if (len(tables[0]) - 1) * self.block_size < num_tokens:  # no table is longer
            return
        ends = self._ends(num_tokens, sequence.num_full_blocks)
        for table, end in zip(tables, ends, strict=True):
            self._release(table[end:].tolist())
            del table[end:]

    def advance(self, sequence: Sequence) -> None:
        """Offer the blocks that have become full for reuse, and give back what is now behind a
        window."""
        start, end = sequence.num_full_blocks, sequence.num_computed_tokens // self.block_size
        if end > start and self.enable_prefix_caching:
            self._register(sequence, start, end)
        if self.states is not None:
            self.states.advance(sequence)
        if end <= start:
            return
        if end > self._window_blocks[-1]:
            behind = [
                (table, index - num_seen)
                for index in range(start, end)
                for table, num_seen in zip(sequence.block_tables, self._window_blocks, strict=True)
                if index >= num_seen
            ]
            self._release([table[index] for table, index in behind])
            for table, index in behind:
                table[index] = 0
        sequence.num_full_blocks = end

    def free(self, sequence: Sequence) -> None:
        """Return the sequence's blocks; the next admission starts from nothing computed."""
        for block_hash in sequence.block_hashes[sequence.num_full_blocks :]:
            self._settle(block_hash, sequence)
        starts = self._starts(sequence.num_full_blocks)
        held = list(zip(starts, sequence.block_tables, strict=True))
        # Last block first: a prefix is worth more than what follows it, so it is evicted later.
        # And the groups in turn: a prefix that one of them has lost is worth nothing in the others.
        self._release(
            [
                table[index]
                for index in reversed(range(len(sequence.block_tables[0])))
                for start, table in held
                if start <= index < len(table)
            ]
        )
        if self.states is not None:
            self.states.free(sequence)
        sequence.block_tables = []
        sequence.num_computed_tokens = 0
        sequence.num_full_blocks = 0

    def discard(self, sequence: Sequence) -> None:
        """Let nobody find what the sequence has computed, or taken from the prefix cache: numbers
        in it are unusable. Others that have taken it too find out by themselves."""
        for block_hash in sequence.block_hashes:
            for group, cached in enumerate(self._cached):
                if (block_id := cached.pop(block_hash, None)) is not None:
                    block = self._blocks[block_id]
                    block.block_hash = None
                    if block.ref_count == 0:
                        self._free.move_to_end(block_id, last=False)
                self.host.discard((group, block_hash))
            if self.states is not None:
                self.states.discard(block_hash)

    def check_integrity(self, sequences: Collection[Sequence]) -> None:
        """Assert that every block is accounted for by exactly these running sequences."""
        ref_counts = [0] * len(self._blocks)
        for sequence in sequences:
            starts = self._starts(sequence.num_full_blocks)
            held: list[int] = []
            for table, start in zip(sequence.block_tables, starts, strict=True):
                assert not any(table[:start]), "behind the window nothing is held"
                assert sequence.num_computed_tokens <= len(table) * self.block_size
                held += table[start:]
            assert len(set(held)) == len(held), sequence
            assert len(held) <= self.max_blocks_held(sequence.num_tokens), sequence
            for block_id in held:
                ref_counts[block_id] += 1
        for block, ref_count in zip(self._blocks, ref_counts, strict=True):
            assert block.ref_count == ref_count, (block.block_id, block.ref_count, ref_count)
            assert (block.block_id in self._free) == (ref_count == 0), block.block_id
            if block.block_hash is not None:
                assert self._cached[block.group][block.block_hash] == block.block_id
        num_cached = sum(block.block_hash is not None for block in self._blocks)
        assert sum(map(len, self._cached)) == num_cached
        assert all(sequence.block_tables for sequence in self._pending.values())
        if self.states is not None:
            self.states.check_integrity(sequences)
        self.host.check_integrity()

    def _starts(self, num_full_blocks: int) -> list[int]:
        """The first block that a sequence with so many full ones holds, for each group."""
        return [max(0, num_full_blocks - num_seen) for num_seen in self._window_blocks]

    def _ends(self, num_tokens: int, num_full_blocks: int) -> list[int]:
        """The length of its block table, for each group."""
        num_blocks = -(-num_tokens // self.block_size)
        return [
            # Until the window is full, room for all of it: nobody is admitted to fall short later.
            min(num_blocks, max(num_full_blocks, num_seen) + self._chunk_blocks)
            for num_seen in self._window_blocks
        ]

    def _match_prefix(self, sequence: Sequence) -> int | None:
        """Blocks at the sequence's beginning that are cached; None: the next is on its way."""
        if not self.enable_prefix_caching or sequence.scores_prompt:
            return 0  # a token whose log probability is wanted must be computed
        sequence.extend_block_hashes(self.block_size)
        longest = num_hits = (sequence.num_tokens - 1) // self.block_size
        windowed: list[tuple[int, int]] = []
        for group, num_seen in enumerate(self._window_blocks):
            if num_seen < num_hits:
                windowed.append((group, num_seen))
                continue
            for index in range(num_hits):
                if not self._is_cached(sequence, index, group):
                    num_hits = index
                    break
        # Backwards: a missing block that the end of the prefix could see moves the end before it.
        index = num_hits
        while windowed and (index := index - 1) >= max(0, num_hits - windowed[0][1]):
            for group, num_seen in windowed:
                if index >= num_hits - num_seen and not self._is_cached(sequence, index, group):
                    num_hits = index
                    break
        if self.states is not None:
            return self._match_state(self.states, sequence, num_hits, longest)
        if num_hits < longest and sequence.block_hashes[num_hits] in self._pending:
            return None
        return num_hits

    def _match_state(
        self, states: StateSlots, sequence: Sequence, num_hits: int, longest: int
    ) -> int | None:
        """Of the blocks that are cached, those up to the last at whose end a state is kept; None:
        one is on its way."""
        hashes, end = sequence.block_hashes, num_hits
        while end < longest and hashes[end] in self._pending:
            end += 1
        if end > num_hits:  # who computes them is to keep the state where the two part
            states.keep(self._pending[hashes[end - 1]], end)
        for num_blocks in range(end, 0, -1):
            if states.is_expected(hashes[num_blocks - 1]):
                return None
            if num_blocks <= num_hits and states.is_kept(hashes[num_blocks - 1]):
                starts = self._starts(num_blocks)
                if all(
                    self._is_cached(sequence, index, group)
                    for group, start in enumerate(starts)
                    for index in range(start, num_blocks)
                ):
                    return num_blocks
        return 0

    def _keep_states(self, sequence: Sequence, num_hits: int) -> None:
        """Have the state kept where others may go on: at the end of the prompt, and where the
        sequence leaves what an earlier one computed."""
        assert self.states is not None
        sequence.extend_block_hashes(self.block_size)
        longest = (sequence.num_tokens - 1) // self.block_size
        num_shared = num_hits
        while num_shared < longest and self._is_cached(sequence, num_shared, 0):
            num_shared += 1
        for num_blocks in sorted({num_shared, longest}):
            if num_blocks > num_hits:
                self.states.keep(sequence, num_blocks)

    def _is_cached(self, sequence: Sequence, index: int, group: int) -> bool:
        """Whether a group has this block of the sequence, on the device or in host memory."""
        block_hash = sequence.block_hashes[index]
        block_id = self._cached[group].get(block_hash)
        token_ids = (
            self.host.token_ids((group, block_hash))
            if block_id is None
            else self._blocks[block_id].token_ids
        )
        start = index * self.block_size
        return token_ids is not None and (
            token_ids == sequence.token_ids[start : start + self.block_size]
        )

    def _load(self, keys: list[BlockKey]) -> None:
        """Have the device get blocks back that host memory holds."""
        self.host.promise(keys)
        for key in keys:
            token_ids = self.host.token_ids(key)
            assert token_ids is not None
            block_id = self._take_free_block()
            self.host.load(key, block_id)
            self._publish(block_id, key, token_ids)

    def _register(self, sequence: Sequence, start: int, end: int) -> None:
        """Let others find the sequence's blocks from `start` up to `end`."""
        sequence.extend_block_hashes(self.block_size)
        blocks: list[tuple[bytes, list[int]]] = []
        for index in range(start, end):
            block_hash, first = sequence.block_hashes[index], index * self.block_size
            self._settle(block_hash, sequence)
            blocks.append((block_hash, sequence.token_ids[first : first + self.block_size]))
        for group, table in enumerate(sequence.block_tables):
            for block_id, (block_hash, token_ids) in zip(table[start:end], blocks, strict=True):
                # Another sequence may have computed the same block first: one copy is enough.
                if block_hash not in self._cached[group]:
                    self._publish(block_id, (group, block_hash), token_ids)

    def _publish(self, block_id: int, key: BlockKey, token_ids: list[int]) -> None:
        """Let the block be found."""
        block = self._blocks[block_id]
        block.group, block.block_hash = key
        block.token_ids = token_ids
        self._cached[block.group][block.block_hash] = block_id

    def _settle(self, block_hash: bytes, sequence: Sequence) -> None:
        """The sequence does not compute this block any more."""
        if self._pending.get(block_hash) is sequence:
            del self._pending[block_hash]

    def _release(self, block_ids: list[int]) -> None:
        for block_id in block_ids:
            block = self._blocks[block_id]
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None
                if block.block_hash is None:
                    self._free.move_to_end(block_id, last=False)

    def _take_free_block(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        self.num_ever_used = max(self.num_ever_used, block_id + 1)
        block = self._blocks[block_id]
        assert block.ref_count == 0
        if block.block_hash is not None:
            del self._cached[block.group][block.block_hash]
            self.host.save((block.group, block.block_hash), block_id, block.token_ids)
            block.block_hash = None
        block.ref_count = 1
        return block_id
