"""The host memory behind a `HostPool`, and the copies to and from the device.

Copies are put in the device's queue behind all that it was given to compute, and before what comes
next, so that no other order has to be kept. On CUDA the memory is pinned, and nobody waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import gcd

import numpy as np
import torch
from torch import Tensor

from axion.engine import kv_cache
from axion.engine.host_pool import HostPool
from axion.errors import ModelLoadError
from axion.layers.transfer import to_device

# A place is copied as a whole, but on the device its parts lie in many tensors. They are gathered
# here, and scattered from here, some places at a time.
STAGING_BYTES = 64 * 2**20
# torch rounds an allocation of pinned memory up to a power of two.
_CHUNK_BYTES = 2**28
_GIB = 2**30
# As wide as can be: a GPU gathers with a thread an element. None of these changes a bit of it.
_ELEMENTS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}


class HostMemory:
    """Places in host memory for rows of the device's tensors.

    Args:
        pool: says which copies are to be made.
        parts: what a place takes of each of the device's tensors, as `rows_of` gives it.
    """

    def __init__(self, pool: HostPool, parts: list[Tensor], device: torch.device) -> None:
        self.pool = pool
        self._parts = parts
        self._device = device
        ends = np.cumsum([0, *(part.shape[1] for part in parts)]).tolist()
        self._columns = [slice(start, end) for start, end in pairwise(ends)]
        size, dtype = ends[-1], parts[0].dtype
        num_bytes = size * dtype.itemsize
        self._places_per_chunk = max(1, _CHUNK_BYTES // num_bytes)
        self._chunks = [
            torch.empty(
                (min(self._places_per_chunk, pool.num_places - first), size),
                dtype=dtype,
                pin_memory=device.type == "cuda",
            )
            for first in range(0, pool.num_places, self._places_per_chunk)
        ]
        num_staged = max(1, min(STAGING_BYTES // num_bytes, pool.num_places))
        self._staging = torch.empty((num_staged, size), dtype=dtype, device=device)

    @torch.inference_mode()
    def move(self) -> None:
        """Put the copies that the pool has decided on in the device's queue.

        A failure leaves them to be made again.
        """
        pool, num_staged = self.pool, len(self._staging)
        for saves in _batches(pool.saves, num_staged):
            rows = self._on_device(row for _, row in saves)
            for part, columns in zip(self._parts, self._columns, strict=True):
                torch.index_select(part, 0, rows, out=self._staging[: len(saves), columns])
            for staged, (place, _) in zip(self._staging, saves, strict=False):
                self._place(place).copy_(staged, non_blocking=True)
        # A load may overwrite what was saved, which could not be saved once more.
        pool.saves.clear()
        for loads in _batches(pool.loads, num_staged):
            rows = self._on_device(row for row, _ in loads)
            for staged, (_, place) in zip(self._staging, loads, strict=False):
                staged.copy_(self._place(place), non_blocking=True)
            for part, columns in zip(self._parts, self._columns, strict=True):
                part.index_copy_(0, rows, self._staging[: len(loads), columns])
        pool.moved()

    def _place(self, place: int) -> Tensor:
        chunk, row = divmod(place, self._places_per_chunk)
        return self._chunks[chunk][row]

    def _on_device(self, rows: Iterable[int]) -> Tensor:
        return to_device(np.fromiter(rows, np.int64), self._device)


def rows_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The memory of contiguous tensors of equally many rows, `[num_rows, num_elements]` each; of
    those that share it, once. All as the widest elements that their rows are whole numbers of."""
    by_address = {
        tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()
    }
    rows = [
        torch.empty(0, dtype=torch.uint8, device=tensor.device)
        .set_(tensor.untyped_storage())
        .view(len(tensor), -1)
        for tensor in by_address.values()
    ]
    width = gcd(max(_ELEMENTS), *(part.shape[1] for part in rows))
    return [part.view(_ELEMENTS[width]) for part in rows]


def _batches(copies: dict[int, int], size: int) -> list[list[tuple[int, int]]]:
    items = list(copies.items())
    return [items[first : first + size] for first in range(0, len(items), size)]


def check_there_is_room(num_bytes: int) -> None:
    """
    Raises:
        ModelLoadError: the host has not so many bytes free.
    """
    free = kv_cache.free_memory(torch.device("cpu"))
    if num_bytes > free:
        raise ModelLoadError(
            f"{num_bytes / _GIB:.2f} GiB of host memory are to take what the KV cache gives up "
            f"(KV_OFFLOAD_GIB), and {free / _GIB:.2f} GiB are free. Set it to at most that."
        )
