"""Which block of the KV cache belongs to whom: paging, reference counts, prefix reuse.

The idea is PagedAttention's (arXiv:2309.06180): sequences are cut into blocks of `block_size`
tokens, and a full block is found again by the chained hash of all tokens up to its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from axion.engine.sequence import Sequence


class Block:
    """One block; `block_hash` and `token_ids` are set while its content can be reused."""

    __slots__ = ("block_hash", "block_id", "ref_count", "token_ids")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.block_hash: bytes | None = None
        self.token_ids: list[int] | None = None


class BlockManager:
    """Allocates blocks to sequences and lets them share equal prefixes.

    A block is in use (`ref_count` > 0) or free. A free block keeps its content, and can be
    taken back by its hash, until it is allocated again; the least recently used goes first.

    Args:
        num_blocks: blocks in the KV cache.
        block_size: tokens in a block.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True
    ) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._blocks = [Block(i) for i in range(num_blocks)]
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, int] = {}
        self._pending: dict[bytes, Sequence] = {}  # blocks that a running sequence computes

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        return len(self._blocks) - len(self._free)

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks for all its tokens, shared ones where there are any.

        Sets `num_computed_tokens` to what the prefix cache supplied. At least one token is
        left to compute, because sampling needs its logits. All or nothing: False when there are
        not enough free blocks, or when a running sequence is computing a block that this one
        could share in a moment.
        """
        assert not sequence.block_table
        hits = self._match_prefix(sequence)
        if hits is None:
            return False
        num_needed = self._num_blocks_for(sequence.num_tokens) - len(hits)
        num_hits_in_free = sum(1 for block_id in hits if self._blocks[block_id].ref_count == 0)
        if num_needed > len(self._free) - num_hits_in_free:
            return False
        for block_id in hits:
            block = self._blocks[block_id]
            if block.ref_count == 0:
                del self._free[block_id]
            block.ref_count += 1
        sequence.block_table = hits + [self._take_free_block() for _ in range(num_needed)]
        sequence.num_computed_tokens = len(hits) * self.block_size
        sequence.num_registered_blocks = len(hits)
        for block_hash in sequence.block_hashes[len(hits) :]:
            self._pending.setdefault(block_hash, sequence)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Make room for all tokens of a running sequence; False when no block is free."""
        num_needed = self._num_blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if num_needed > len(self._free):
            return False
        for _ in range(num_needed):
            sequence.block_table.append(self._take_free_block())
        return True

    def register(self, sequence: Sequence) -> None:
        """Offer the sequence's computed full blocks for reuse."""
        num_full = sequence.num_computed_tokens // self.block_size
        if not self.enable_prefix_caching or num_full <= sequence.num_registered_blocks:
            return
        sequence.extend_block_hashes(self.block_size)
        for index in range(sequence.num_registered_blocks, num_full):
            block_hash = sequence.block_hashes[index]
            self._settle(block_hash, sequence)
            # Another sequence may have computed the same block first: one copy is enough.
            if block_hash not in self._cached:
                block = self._blocks[sequence.block_table[index]]
                start = index * self.block_size
                block.block_hash = block_hash
                block.token_ids = sequence.token_ids[start : start + self.block_size]
                self._cached[block_hash] = block.block_id
        sequence.num_registered_blocks = num_full

    def free(self, sequence: Sequence) -> None:
        """Return the sequence's blocks; the next admission starts from nothing computed."""
        for block_hash in sequence.block_hashes[sequence.num_registered_blocks :]:
            self._settle(block_hash, sequence)
        # Last block first: a prefix is worth more than what follows it, so it is evicted later.
        for block_id in reversed(sequence.block_table):
            block = self._blocks[block_id]
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None
                if block.block_hash is None:
                    self._free.move_to_end(block_id, last=False)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        sequence.num_registered_blocks = 0

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that every block is accounted for by exactly these running sequences."""
        ref_counts = [0] * len(self._blocks)
        for sequence in sequences:
            assert len(set(sequence.block_table)) == len(sequence.block_table), sequence
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
            for block_id in sequence.block_table:
                ref_counts[block_id] += 1
        for block, ref_count in zip(self._blocks, ref_counts, strict=True):
            assert block.ref_count == ref_count, (block.block_id, block.ref_count, ref_count)
            assert (block.block_id in self._free) == (ref_count == 0), block.block_id
            if block.block_hash is not None:
                assert self._cached[block.block_hash] == block.block_id
        assert len(self._cached) == sum(block.block_hash is not None for block in self._blocks)
        assert all(sequence.block_table for sequence in self._pending.values())

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _settle(self, block_hash: bytes, sequence: Sequence) -> None:
        """The sequence does not compute this block any more."""
        if self._pending.get(block_hash) is sequence:
            del self._pending[block_hash]

    def _match_prefix(self, sequence: Sequence) -> list[int] | None:
        """The cached blocks that the sequence begins with; None: the next one is on its way."""
        if not self.enable_prefix_caching or sequence.scores_prompt:
            return []  # a token whose log probability is wanted must be computed
        sequence.extend_block_hashes(self.block_size)
        hits: list[int] = []
        for index in range((sequence.num_tokens - 1) // self.block_size):
            block_id = self._cached.get(sequence.block_hashes[index])
            if block_id is None and sequence.block_hashes[index] in self._pending:
                return None
            start = index * self.block_size
            tokens = sequence.token_ids[start : start + self.block_size]
            if block_id is None or self._blocks[block_id].token_ids != tokens:
                break
            hits.append(block_id)
        return hits

    def _take_free_block(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        block = self._blocks[block_id]
        assert block.ref_count == 0
        if block.block_hash is not None:
            del self._cached[block.block_hash]
            block.block_hash = block.token_ids = None
        block.ref_count = 1
        return block_id
