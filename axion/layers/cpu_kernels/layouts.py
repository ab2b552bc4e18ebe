"""How the weights of blocks lie that `axion.layers.cpu_kernels.blocks` multiplies by."""

from __future__ import annotations

from dataclasses import dataclass

LANES = 16
"""Columns that lie beside each other."""
GROUP = 32
"""Inputs whose codes do, and that are rounded by one scale."""


@dataclass(frozen=True)
class Layout:
    """How the numbers of a type lie in memory: `(code - zero) * scale + offset`.

    Attributes:
        planes: the bits of a code, the lowest first, in parts of 8, 4, 2 or 1.
        has_offset: there are offsets.
        group_size: inputs that share a scale and an offset, 32 or 16.
        block_size: inputs that share a float16; where these are more than a group, each group has
            a factor of it, int8.
    """

    planes: tuple[int, ...]
    zero: int = 0
    has_offset: bool = False
    group_size: int = 32
    block_size: int = 32

    @property
    def group_bytes(self) -> int:
        """Bytes of the codes of 32 inputs, of a column."""
        return sum(self.planes) * GROUP // 8

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's scales and offsets, of a column."""
        factors = self.block_size // self.group_size if self.block_size > GROUP else 0
        return (2 + factors) * (1 + self.has_offset)


LAYOUTS = {
    "Q4_0": Layout((4,), zero=8),
    "Q4_1": Layout((4,), has_offset=True),
    "Q5_0": Layout((4, 1), zero=16),
    "Q5_1": Layout((4, 1), has_offset=True),
    "Q8_0": Layout((8,), zero=128),
    "Q2_K": Layout((2,), has_offset=True, group_size=16, block_size=256),
    "Q3_K": Layout((2, 1), zero=4, group_size=16, block_size=256),
    "Q4_K": Layout((4,), has_offset=True, block_size=256),
    "Q5_K": Layout((4, 1), has_offset=True, block_size=256),
    "Q6_K": Layout((4, 2), zero=32, group_size=16, block_size=256),
}
