"""What the number formats of GGUF files have in common: bytes of blocks as numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


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
