"""The tensors of recurrent states, and how many sequences' there is room for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import prod

import torch

from axion.engine.sequence import SequenceState
from axion.errors import ModelLoadError
from axion.layers.context import State, StateRun, StateSpec

_GIB = 2**30


def bytes_per_slot(specs: list[StateSpec], dtype: torch.dtype) -> int:
    """What one sequence's state takes, of all layers."""
    return sum(
        prod(tensor.shape) * (tensor.dtype or dtype).itemsize
        for spec in specs
        for tensor in spec.values()
    )


def num_slots_that_fit(
    bytes_per_slot: int,
    *,
    max_num_seqs: int,
    num_kept: int,
    num_kv_bytes: int,
    num_bytes: int,
) -> int:
    """Slots, with slot 0, for states that share `num_bytes` with the KV cache.

    These are at most half of it, unless that is less than one sequence needs.

    Args:
        num_kept: states that are worth keeping beside those of `max_num_seqs` sequences.
        num_kv_bytes: what one sequence of full length needs of the KV cache.

    Raises:
        ModelLoadError: there is not even room for one sequence's.
    """
    most = (num_bytes - num_kv_bytes) // bytes_per_slot
    if most < 2:
        need = 2 * bytes_per_slot + num_kv_bytes
        raise ModelLoadError(
            f"The states and the KV cache of one sequence need {need / _GIB:.2f} GiB, and "
            f"{max(num_bytes, 0) / _GIB:.2f} GiB may be used. Give them more with KV_CACHE_GIB or "
            "MEMORY_FRACTION, or set MAX_SEQ_LEN lower."
        )
    half = max(2, num_bytes // 2 // bytes_per_slot)
    return min(1 + max_num_seqs + num_kept, half, most)


def allocate(
    specs: list[StateSpec], num_slots: int, *, dtype: torch.dtype, device: torch.device
) -> list[State]:
    """Each layer's tensors, `[num_slots, *shape]`; those of slot 0 are zeros."""
    return [
        {
            name: torch.zeros(
                (num_slots, *tensor.shape), dtype=tensor.dtype or dtype, device=device
            )
            for name, tensor in spec.items()
        }
        for spec in specs
    ]


def runs(state: SequenceState, first_row: int, start: int, end: int) -> Iterator[StateRun]:
    """How a step takes a sequence's state from its token `start` to its token `end`.

    Args:
        first_row: of these tokens in the flat batch.
    """
    cuts = sorted(n for n in state.checkpoints if start < n < end)
    source = state.source
    for order, (a, b) in enumerate(pairwise([start, *cuts, end])):
        kept = state.checkpoints.get(b)
        yield StateRun(first_row + a - start, b - a, source, state.slot, kept, order)
        source = state.slot
