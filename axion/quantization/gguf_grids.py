"""The types of GGUF files whose numbers have no bits of their own: indices into llama.cpp's tables
of eight or four numbers (IQ1 to IQ3), and five digits to the base 3 in a byte (TQ1).

The functions are as those in `gguf_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from axion.quantization.gguf_bits import Parts, bits, half, of_numbers, shifted, words

_SIGN_BITS = (0, 7, 14, 21)
_BYTE = range(8)


@cache
def _grid(name: str, device: torch.device) -> Tensor:
    """What each index stands for: eight or four numbers of a byte, as one integer, which is
    looked up many times faster than a row is."""
    import gguf  # it takes a while, and only such a file needs it

    quantization = getattr(gguf.quants, name)
    quantization.init_grid()
    numbers = torch.tensor(quantization.grid[0, 0], dtype=torch.int8, device=device)
    return numbers.view(torch.int64 if numbers.shape[1] == 8 else torch.int32).flatten()


@cache
def _sign_table(num_bits: int, device: torch.device) -> Tensor:
    """The same for masks: -1 for a bit that is set, else 1. Of masks of seven bits the eighth makes
    the number of set ones even."""
    signs = bits(torch.arange(2**num_bits, device=device), _BYTE, 1)
    if num_bits == 7:
        signs[:, 7] = signs.sum(-1) & 1
    return (1 - 2 * signs).to(torch.int8).view(torch.int64).flatten()


def _look_up(table: Tensor, indices: Tensor) -> Tensor:
    """Indices `[..., m]` to `[..., m, 8 or 4]`, int8."""
    found = table.index_select(0, indices.flatten().int()).view(torch.int8)
    return found.view(*indices.shape, table.itemsize)


def _numbers(name: str, indices: Tensor) -> Tensor:
    return _look_up(_grid(name, indices.device), indices)


def _signs(masks: Tensor, num_bits: int = 8) -> Tensor:
    return _look_up(_sign_table(num_bits, masks.device), masks)


def _parts(numbers: Tensor, scale: Tensor, factors: Tensor) -> Parts:
    """
    Args:
        numbers: `[n, ...]`, int8.
        factors: `[n, num_groups]`, integers of a few bits, of which the factors are the odd
            numbers.
    """
    codes = of_numbers(numbers.flatten(1))
    return Parts(codes, scale, factors=(2 * factors + 1).to(torch.int8))


def _eighths(numbers: Tensor, is_less: Tensor) -> Tensor:
    """Numbers and an eighth more or less, in eighths.

    Args:
        numbers: `[n, m, ...]`, int8.
        is_less: `[n, m']`, 0 or 1, of neighbouring numbers.
    """
    deltas = (1 - 2 * is_less).to(torch.int8)
    return (8 * numbers.view(*deltas.shape, -1) + deltas[..., None]).flatten(1)


def _nibbles_in_turn(packed: Tensor) -> Tensor:
    """`[n, m]` to `[n, 2 * m]`: of each byte the low half, then the high one."""
    return bits(packed, (0, 4), 0x0F).flatten(-2)


def _iq2_xxs(blocks: Tensor) -> Parts:
    pairs = blocks[:, 2:].contiguous().view(torch.int32).view(-1, 8, 2)
    indices, rest = pairs[..., 0].contiguous().view(torch.uint8).view(-1, 8, 4), pairs[..., 1]
    numbers = _numbers("IQ2_XXS", indices).mul_(_signs(bits(rest, _SIGN_BITS, 127), 7))
    return _parts(numbers, half(blocks, 0), rest >> 28 & 15)


def _iq2_xs(blocks: Tensor) -> Parts:
    codes = words(blocks[:, 2:66])
    numbers = _numbers("IQ2_XS", codes & 511).mul_(_signs(codes >> 9, 7))
    return _parts(numbers, half(blocks, 0), _nibbles_in_turn(blocks[:, 66:]))


def _iq2_s(blocks: Tensor) -> Parts:
    indices = blocks[:, 2:34].int() | bits(blocks[:, 66:74], (0, 2, 4, 6), 3).flatten(1) << 8
    numbers = _numbers("IQ2_S", indices).mul_(_signs(blocks[:, 34:66]))
    return _parts(numbers, half(blocks, 0), _nibbles_in_turn(blocks[:, 74:]))


def _iq3_xxs(blocks: Tensor) -> Parts:
    rest = blocks[:, 66:].contiguous().view(torch.int32)
    signs = _signs(bits(rest, _SIGN_BITS, 127), 7)
    numbers = _numbers("IQ3_XXS", blocks[:, 2:66]).view(signs.shape).mul_(signs)
    return _parts(numbers, half(blocks, 0), rest >> 28 & 15)


def _iq3_s(blocks: Tensor) -> Parts:
    indices = blocks[:, 2:66].int() | bits(blocks[:, 66:74], _BYTE, 1).flatten(1) << 8
    signs = _signs(blocks[:, 74:106])
    numbers = _numbers("IQ3_S", indices).view(signs.shape).mul_(signs)
    return _parts(numbers, half(blocks, 0), _nibbles_in_turn(blocks[:, 106:]))


def _iq1_s(blocks: Tensor) -> Parts:
    rest = words(blocks[:, 34:])
    indices = blocks[:, 2:34].int() | bits(rest, (0, 3, 6, 9), 7).flatten(1) << 8
    numbers = _eighths(_numbers("IQ1_S", indices), rest >> 15)
    return _parts(numbers, half(blocks, 0), rest >> 12 & 7)


def _iq1_m(blocks: Tensor) -> Parts:
    rest, scales = _nibbles_in_turn(blocks[:, 32:48]), words(blocks[:, 48:])
    # The last four bits of four words are a float16.
    pieces = scales >> 12 << torch.arange(0, 16, 4, dtype=torch.int32, device=blocks.device)
    scale = pieces.sum(1, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    numbers = _numbers("IQ1_M", blocks[:, :32].int() | (rest & 7) << 8)
    factors = bits(scales, (0, 3, 6, 9), 7).flatten(1)
    return _parts(_eighths(numbers, rest >> 3 & 1), scale[:, None], factors)


def _tq1_0(blocks: Tensor) -> Parts:
    codes = [
        _digits(blocks[:, start:end], count)
        for start, end, count in ((0, 32, 5), (32, 48, 5), (48, 52, 4))
    ]
    return Parts(torch.cat(codes, dim=1), half(blocks, 52))


def _digits(packed: Tensor, count: int) -> Tensor:
    """`[n, m]` to `[n, count * m]`: all first digits of numbers to the base 3, then all second."""
    powers = torch.tensor([3**place for place in range(count)], device=packed.device)
    digits = (packed[:, None].int() * powers[:, None] & 0xFF) * 3 >> 8
    return digits.flatten(1).to(torch.uint8)


def _tq2_0(blocks: Tensor) -> Parts:
    codes = shifted(blocks[:, :64].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    return Parts(codes.flatten(1), half(blocks, 64))


FUNCTIONS: dict[str, Callable[[Tensor], Parts]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
}
