"""Carries the states of a step's sequences through a layer that keeps one instead of keys and
values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from axion.layers.context import ForwardContext, StateRun
from axion.layers.transfer import to_device

Cell = Callable[..., tuple[Tensor, Tensor]]
"""From states `[batch, ...]` and inputs `[batch, length, ...]` to outputs, `[batch, length, ...]`
too, and the states after them."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Runs of one length that can be computed together.

    Attributes:
        rows: theirs in the flat batch.
        sources: `[batch]`, slots of the states before.
        targets: slots of the states after; some of these go to two.
        indices: whose state goes to each of `targets`; None: each one's to its own.
    """

    rows: slice | Tensor
    length: int
    sources: Tensor
    targets: Tensor
    indices: Tensor | None


def scan(cell: Cell, state: Tensor, inputs: tuple[Tensor, ...], context: ForwardContext) -> Tensor:
    """Compute each sequence's rows from its own state on, and keep the state after them.

    All sequences that decode are one call of `cell`, and so are chunks of equal length.

    Args:
        state: `[num_slots, ...]`.
        inputs: `[num_tokens, ...]` each.

    Returns:
        `[num_tokens, ...]`.
    """
    out: Tensor | None = None
    for group in context.once(_groups, _groups):
        batch = [x[group.rows].unflatten(0, (-1, group.length)) for x in inputs]
        part, after = cell(state.index_select(0, group.sources), *batch)
        after = after if group.indices is None else after.index_select(0, group.indices)
        state.index_copy_(0, group.targets, after.to(state.dtype))
        part = part.flatten(0, 1)
        if len(part) == len(inputs[0]):
            return part
        if out is None:
            out = part.new_empty(len(inputs[0]), *part.shape[1:])
        out[group.rows] = part
    assert out is not None
    return out


def _groups(context: ForwardContext) -> list[_Group]:
    # A sequence's runs follow each other, so those of different sequences go together.
    alike: dict[tuple[int, int], list[StateRun]] = {}
    for run in context.state_runs:
        alike.setdefault((run.order, run.num_rows), []).append(run)
    return [_group(alike[key], context.positions.device) for key in sorted(alike)]


def _group(runs: list[StateRun], device: torch.device) -> _Group:
    def tensor(values: list[int]) -> Tensor:
        return to_device(np.array(values), device)

    length = runs[0].num_rows
    rows: slice | Tensor
    first = runs[0].first_row
    if all(run.first_row == first + i * length for i, run in enumerate(runs)):
        rows = slice(first, first + len(runs) * length)
    else:
        rows = tensor([run.first_row + i for run in runs for i in range(length)])
    kept = [(i, run.kept) for i, run in enumerate(runs) if run.kept is not None]
    return _Group(
        rows=rows,
        length=length,
        sources=tensor([run.source for run in runs]),
        targets=tensor([run.target for run in runs] + [slot for _, slot in kept]),
        indices=tensor([*range(len(runs)), *(i for i, _ in kept)]) if kept else None,
    )
