"""Which slot holds whose recurrent state, and from which a new sequence can go on.

A layer that keeps a state instead of keys and values has it for one length of a sequence only. So
beside the slot of each running sequence there are slots that keep states at the end of some block,
and a prefix can be reused up to there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from axion.engine.host_pool import HostPool
from axion.engine.sequence import Sequence, SequenceState


class StateSlots:
    """Gives slots to sequences, and finds kept states by the hash of the tokens before them.

    A slot is in use or free. A free one keeps its state, and can be taken back by its hash, until
    another needs it; the least recently used goes first. Slot 0 is nobody's and holds zeros.

    Args:
        num_slots: without slot 0.
        max_num_seqs: for so many sequences a slot is kept free, as far as there are enough.
        host: takes kept states whose slots others need; None: they are lost.
    """

    def __init__(
        self,
        num_slots: int,
        block_size: int,
        *,
        max_num_seqs: int,
        host: HostPool | None = None,
    ) -> None:
        self.num_slots = num_slots
        self.host = HostPool(0) if host is None else host
        self.block_size = block_size
        self._num_promised = min(max_num_seqs, num_slots)
        self._ref_counts = [0] * (num_slots + 1)
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_slots + 1))
        self._kept: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}  # the same the other way round
        self._expected: set[bytes] = set()  # of the checkpoints of running sequences

    def is_kept(self, block_hash: bytes) -> bool:
        """Whether a sequence can go on from the end of this block."""
        return block_hash in self._kept or block_hash in self.host

    def is_expected(self, block_hash: bytes) -> bool:
        """Whether a running sequence will keep its state at the end of this block."""
        return block_hash in self._expected

    def admit(self, sequence: Sequence, num_hits: int) -> bool:
        """Give a sequence a slot; False when none is free.

        Args:
            num_hits: full blocks that it goes on from; a state is kept at their end.
        """
        assert sequence.state is None
        block_hash = sequence.block_hashes[num_hits - 1] if num_hits else b""
        source = self._kept.get(block_hash, 0)
        if len(self._free) <= (source in self._free):
            return False
        if source:
            self._retain(source)
        if num_hits and not source:
            slot = source = self._load(block_hash)
        else:
            slot = self._take()
        sequence.state = SequenceState(slot, source)
        self._num_promised -= 1
        return True

    def keep(self, sequence: Sequence, num_blocks: int) -> bool:
        """Have a running sequence keep its state when it has computed so many blocks.

        Returns:
            Whether there will be one; not if there is no slot to spare.
        """
        assert sequence.state is not None
        sequence.extend_block_hashes(self.block_size)
        block_hash = sequence.block_hashes[num_blocks - 1]
        if self.is_kept(block_hash) or block_hash in self._expected:
            return True
        if len(self._free) <= self._num_promised:
            return False
        self._expected.add(block_hash)
        sequence.state.checkpoints[num_blocks * self.block_size] = self._take()
        return True

    def advance(self, sequence: Sequence) -> None:
        """The state is now that after the computed tokens: it is in the sequence's own slot, and
        in those of the checkpoints that are behind."""
        state = sequence.state
        assert state is not None
        if state.source not in (0, state.slot):
            self._release(state.source)
        state.source = state.slot
        for num_tokens in [n for n in state.checkpoints if n <= sequence.num_computed_tokens]:
            slot = state.checkpoints.pop(num_tokens)
            block_hash = sequence.block_hashes[num_tokens // self.block_size - 1]
            self._expected.remove(block_hash)
            self._kept[block_hash], self._hashes[slot] = slot, block_hash
            self._release(slot)

    def free(self, sequence: Sequence) -> None:
        """Take the sequence's slots back."""
        state = sequence.state
        assert state is not None
        for num_tokens, slot in state.checkpoints.items():
            self._expected.remove(sequence.block_hashes[num_tokens // self.block_size - 1])
            self._release(slot)
        for slot in {state.slot, state.source} - {0}:
            self._release(slot)
        sequence.state = None
        self._num_promised += 1

    def discard(self, block_hash: bytes) -> None:
        """Let nobody go on from the end of this block: the state there is unusable."""
        if (slot := self._kept.pop(block_hash, None)) is not None:
            del self._hashes[slot]
            if slot in self._free:
                self._free.move_to_end(slot, last=False)
        self.host.discard(block_hash)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that every slot is accounted for by exactly these running sequences."""
        ref_counts = [0] * (self.num_slots + 1)
        own: set[int] = set()
        expected: set[bytes] = set()
        for sequence in sequences:
            state = sequence.state
            assert state is not None
            slots = [state.slot, *state.checkpoints.values()]
            assert len({0, *slots, *own}) == 1 + len(slots) + len(own), "a slot is one's alone"
            own.update(slots)
            expected |= {sequence.block_hashes[n // self.block_size - 1] for n in state.checkpoints}
            for slot in {*slots, state.source} - {0}:
                ref_counts[slot] += 1
        assert ref_counts == self._ref_counts
        assert expected == self._expected
        assert self._free.keys() == {i for i, n in enumerate(ref_counts) if i and not n}
        assert {slot: block_hash for block_hash, slot in self._kept.items()} == self._hashes
        assert own.isdisjoint(self._hashes)
        self.host.check_integrity()

    def _load(self, block_hash: bytes) -> int:
        """A slot that gets the state back which host memory keeps."""
        self.host.promise([block_hash])
        slot = self._take()
        self.host.load(block_hash, slot)
        return slot

    def _take(self) -> int:
        slot, _ = self._free.popitem(last=False)
        if (block_hash := self._hashes.pop(slot, None)) is not None:
            del self._kept[block_hash]
            self.host.save(block_hash, slot)
        self._ref_counts[slot] = 1
        return slot

    def _retain(self, slot: int) -> None:
        self._free.pop(slot, None)
        self._ref_counts[slot] += 1

    def _release(self, slot: int) -> None:
        self._ref_counts[slot] -= 1
        if not self._ref_counts[slot]:
            self._free[slot] = None
            if slot not in self._hashes:
                self._free.move_to_end(slot, last=False)
