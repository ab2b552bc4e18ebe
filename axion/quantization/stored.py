"""What a checkpoint stores, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor, nn

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, not read yet.

    Attributes:
        name: as it is stored; what a model calls it may differ.
        file: the name of its file, for messages.
        dtype: as safetensors calls it (`F32`, `I32`, `F8_E4M3`).
        read: its values, on the CPU. They may be mapped from the file: not to be written to.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    def part(self, index: int) -> StoredTensor:
        """One of those that are stacked along the first dimension."""
        return replace(self, shape=self.shape[1:], read=lambda: self.read()[index])


class Expected(NamedTuple):
    """What a stored tensor must be."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


def stored_part(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters, and its buffers that are not computed from config.json."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer
