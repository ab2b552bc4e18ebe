"""Memory of the KV cache on a CPU, brought in before it is used.

The kernel gives a process memory when that is first written to, page by page, and clears it before.
In a virtual machine that takes 0.5 to 2.5 s a GiB, an eighth of the time of a prompt. So while the
engine has nothing to do, what the next step may use is written to. All of the cache would be memory
that others may want, for sequences that may never come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from axion.engine.block_manager import BlockManager
from axion.layers.context import KVCache


class MemoryAhead:
    """Args:
    num_tokens: of a step, at most.
    """

    def __init__(
        self, kv_caches: Iterable[KVCache], block_manager: BlockManager, num_tokens: int
    ) -> None:
        tensors = [x for cache in kv_caches for x in (cache.k, cache.v)]
        # Layers of other groups, and values in their keys, have the same memory.
        by_address = {x.data_ptr(): x for x in reversed(tensors) if x.numel() and x.is_cpu}
        self._tensors = list(by_address.values())
        self._block_manager = block_manager
        num_blocks = -(-num_tokens // block_manager.block_size) * len(block_manager.windows)
        self._num_blocks = min(num_blocks, block_manager.num_blocks)
        self._start = self._end = 0  # of the blocks that get memory; those before have it
        self._pieces: Iterator[Tensor] = iter(())

    def bring_piece(self) -> bool:
        """Take some milliseconds for it; False: there is enough."""
        num_used = self._block_manager.num_ever_used
        if (tensor := next(self._pieces, None)) is None:
            start = max(self._end, num_used)
            end = min(num_used + self._num_blocks, self._block_manager.num_blocks)
            # Not for a few blocks: huge pages come whole.
            if end - start <= self._num_blocks // 4:
                return False
            self._start, self._end = start, end
            self._pieces = iter(self._tensors)
            return True
        # Those that were taken meanwhile hold something.
        tensor[max(self._start, num_used) : self._end].zero_()
        return True
