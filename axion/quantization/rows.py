"""A weight that is dequantized a few rows at a time, while it is multiplied by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers import kernels
from axion.layers.kernels.weights import LowBitWeight
from axion.quantization.kernel import Kernel

MAX_PIECE = 2**22
"""Most numbers of a weight that are dequantized at once: 16 MiB of float32."""
# The same where Triton's kernel does it, and writes nothing else: 64 MiB of bfloat16.
_MAX_UNPACKED = 2**25


def pair_table(first: Tensor, second: Tensor) -> Tensor:
    """What `look_up` reads: for each byte, two float32 as one integer.

    Args:
        first, second: `[256]`.
    """
    return torch.stack([first, second], 1).float().view(torch.int64).flatten()


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """Bytes `[..., n]` to the float32 `[..., 2 * n]` that they stand for.

    Several times faster than an embedding is, which reads rows.
    """
    found = table.index_select(0, codes.flatten().int())
    return found.view(torch.float32).view(*codes.shape[:-1], -1)


class RowKernel(Kernel):
    """To override: `rows`.

    Args:
        row_multiple: pieces begin at multiples of so many rows.
    """

    def __init__(self, in_features: int, out_features: int, row_multiple: int = 1) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.row_multiple = row_multiple

    @abstractmethod
    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows of the weight, `[end - start, in_features]`."""

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([self.rows(*piece, dtype) for piece in self._pieces(MAX_PIECE)])

    def forward(self, x: Tensor) -> Tensor:
        if self.has_product(x):
            from axion.layers.kernels.grouped import low_bit_product

            return low_bit_product(x, self._low_bit)
        pieces = [F.linear(x, rows) for rows in self._numbers(x)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def has_product(self, x: Tensor) -> bool:
        """Whether Triton's kernel multiplies `x` by the weight as it is kept."""
        num_rows = x.numel() // self.in_features
        return (
            num_rows <= kernels.MAX_LOW_BIT_ROWS and kernels.run_on(x) and self._low_bit is not None
        )

    @cached_property
    def _low_bit(self) -> LowBitWeight | None:
        return self.low_bit()

    def _numbers(self, x: Tensor) -> Iterator[Tensor]:
        """All rows of the weight, some after the other, in the number format of `x`."""
        weight = self._low_bit if kernels.run_on(x) else None
        if weight is None:
            for piece in self._pieces(MAX_PIECE):
                yield self.rows(*piece, x.dtype)
            return
        from axion.layers.kernels.low_bit import unpack

        for piece in self._pieces(_MAX_UNPACKED):
            yield unpack(weight.rows(*piece), self.in_features, x.dtype)

    def _pieces(self, max_numbers: int) -> Iterator[tuple[int, int]]:
        step = max(max_numbers // self.in_features // self.row_multiple, 1) * self.row_multiple
        for start in range(0, self.out_features, step):
            yield start, min(start + step, self.out_features)
