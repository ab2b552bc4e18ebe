"""Stored tensors, given to transformers to load, and what it says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.quantization.stored import FLOATS, StoredTensor


def check_dtypes(tensors: Mapping[str, StoredTensor], model: nn.Module) -> None:
    """Raises: ModelLoadError: a tensor's number format is none that the model computes with."""
    tables = [name for name, own in model.state_dict().items() if not own.is_floating_point()]
    for name, tensor in tensors.items():
        # What is no number of a kind to compute with may be a table, and a quantized weight. Some
        # checkpoints call the whole by no name.
        is_table = any(f".{table}".endswith(f".{name}") for table in tables)
        if tensor.dtype not in FLOATS and not is_table:
            raise ModelLoadError(
                f"{name[:200]!r} is stored as {tensor.dtype}, expected one of {', '.join(FLOATS)}."
            )


@dataclass
class _Reader:
    """A stored tensor, read when transformers asks for all of it."""

    tensor: StoredTensor
    on_read: Callable[[StoredTensor], None]

    def __getitem__(self, index: Any) -> Tensor:
        value = self.tensor.read()
        self.on_read(self.tensor)
        return value


def readers(
    tensors: Mapping[str, StoredTensor],
    itemsize: int,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, _Reader]:
    """By name, what transformers takes for tensors.

    Args:
        itemsize: bytes of a number, once it is read.
        on_progress: called with (bytes read, bytes in all).
    """
    sizes = {name: math.prod(tensor.shape) * itemsize for name, tensor in tensors.items()}
    total, done = sum(sizes.values()), 0

    def on_read(tensor: StoredTensor) -> None:
        nonlocal done
        done += sizes[tensor.name]
        if on_progress is not None:
            on_progress(done, total)

    return {name: _Reader(tensor, on_read) for name, tensor in tensors.items()}


def check_report(report: dict[str, Any]) -> None:
    """Raises: ModelLoadError: transformers missed a tensor, or found one too many."""
    faults = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    faults += [
        f"{name[:200]!r} is not part of the architecture"
        for name in sorted(report["unexpected_keys"])
    ]
    faults += [
        f"{name} has shape {list(stored)}, expected {list(expected)}"
        for name, stored, expected in sorted(report["mismatched_keys"])
    ]
    faults += [str(error)[:300] for error in report.get("error_msgs", ())]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelLoadError(
            f"The weights are not what config.json describes: {'; '.join(faults[:5])}{more}."
        )
