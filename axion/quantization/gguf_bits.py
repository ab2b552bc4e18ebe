"""What the number formats of GGUF files have in common: bytes of blocks as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from axion.layers.cpu_kernels.layouts import Layout


class Parts(NamedTuple):
    """Blocks as integers of a few bits, and what makes weights of them, by the type's `Layout`:
    `(code - bias) * scale * unit * factor + offset * offset_factor`.

    Attributes:
        codes: `[n, size]`, uint8.
        scale, offset: `[n, 1]`, float32 that 16 bits hold; or as many as there are groups.
        factors, offset_factors: `[n, num_groups]`, int8; None where there are no others.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor | None = None
    factors: Tensor | None = None
    offset_factors: Tensor | None = None

    def weights(self, layout: Layout, out: Tensor) -> None:
        """
        Args:
            out: `[n, size]`, float32, to write to.
        """
        scale, offset = self.scale * layout.unit, self.offset
        if self.factors is not None:
            scale = scale * self.factors
        if offset is not None and self.offset_factors is not None:
            offset = offset * self.offset_factors
        groups = out.copy_(self.codes).view(*scale.shape, -1)
        if layout.bias:
            groups.sub_(layout.bias)
        groups.mul_(scale[..., None])
        if offset is not None:
            groups.add_(offset[..., None])


def of_numbers(numbers: Tensor) -> Tensor:
    """Codes of int8."""
    return numbers.view(torch.uint8) ^ 0x80


def half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at this byte of each block, `[n, 1]` float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def shifted(packed: Tensor, shifts: Iterable[int], mask: int, to: int = 0) -> Tensor:
    """`[..., m]` to `[..., len(shifts), m]`: of each byte the bits from there on, as bits from
    `to` on.

    Four bytes are one number meanwhile: on a processor that is many times faster.
    """
    words = packed.contiguous().view(torch.int32)
    parts = [((words >> shift) & (0x01010101 * mask)) << to for shift in shifts]
    return torch.stack(parts, dim=-2).view(torch.uint8)


def nibbles(packed: Tensor) -> Tensor:
    """`[n, m]` to `[n, 2 * m]`: all low halves, then all high ones."""
    return shifted(packed, (0, 4), 0x0F).flatten(-2)


def words(packed: Tensor) -> Tensor:
    """Pairs of bytes `[n, 2 * m]` as int32 `[n, m]`, from 0 to 65,535."""
    return packed.contiguous().view(torch.int16).int() & 0xFFFF


def bits(numbers: Tensor, shifts: Iterable[int], mask: int) -> Tensor:
    """`[..., m]` to `[..., m, len(shifts)]`, int32: of each number the bits from there on."""
    by = torch.tensor(tuple(shifts), dtype=torch.int32, device=numbers.device)
    return numbers.int().unsqueeze(-1) >> by & mask
