"""The number formats of GGUF files (ggml's `ggml-quants.c`, gguf's `quants.py`), in torch.

A row of numbers is stored as blocks, each of some bytes: `axion.hub.gguf.TENSOR_TYPES` has the
sizes. A function here takes blocks `[n, num_bytes]`, uint8, to their parts, which are the numbers
that gguf's own functions in NumPy have, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from axion.hub.gguf import TensorType
from axion.layers.cpu_kernels.layouts import LAYOUTS
from axion.quantization import gguf_grids
from axion.quantization.float8 import widen
from axion.quantization.gguf_bits import Parts, half, nibbles, of_numbers, shifted

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Of E2M1, doubled.
_MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(stored: Tensor, kind: TensorType, out: Tensor | None = None) -> Tensor:
    """Numbers `[..., columns]`, float32, from bytes `[..., columns / block_size * num_bytes]`.

    Args:
        out: a buffer for the numbers, `[n]`: fresh memory costs more than all of the arithmetic.
    """
    if kind.name in _FLOATS:
        return stored.contiguous().view(_FLOATS[kind.name]).float()
    blocks = stored.reshape(-1, kind.num_bytes)
    if out is None:
        out = torch.empty(len(blocks) * kind.block_size, device=stored.device)
    out = out[: len(blocks) * kind.block_size].view(-1, kind.block_size)
    parts(blocks, kind).weights(LAYOUTS[kind.name], out)
    return out.view(*stored.shape[:-1], -1)


def parts(blocks: Tensor, kind: TensorType) -> Parts:
    """Of `[n, num_bytes]`, uint8."""
    return _FUNCTIONS[kind.name](blocks)


def _fifth_bits(packed: Tensor) -> Tensor:
    """`[n, 4]` to `[n, 32]`: each bit as 16 or 0."""
    return shifted(packed, range(8), 1, to=4).transpose(-1, -2).flatten(-2)


def _q4_0(blocks: Tensor) -> Parts:
    return Parts(nibbles(blocks[:, 2:]), half(blocks, 0))


def _q4_1(blocks: Tensor) -> Parts:
    return Parts(nibbles(blocks[:, 4:]), half(blocks, 0), half(blocks, 2))


def _q5_0(blocks: Tensor) -> Parts:
    return Parts(nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), half(blocks, 0))


def _q5_1(blocks: Tensor) -> Parts:
    codes = nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Parts(codes, half(blocks, 0), half(blocks, 2))


def _q8_0(blocks: Tensor) -> Parts:
    return Parts(blocks[:, 2:] ^ 0x80, half(blocks, 0))


def _q2_k(blocks: Tensor) -> Parts:
    factors = shifted(blocks[:, :16], (0, 4), 0x0F).view(torch.int8)
    codes = shifted(blocks[:, 16:80].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).flatten(1)
    return Parts(codes, half(blocks, 80), -half(blocks, 82), factors[:, 0], factors[:, 1])


def _q3_k(blocks: Tensor) -> Parts:
    low = nibbles(blocks[:, 96:104])
    high = shifted(blocks[:, 104:108], (0, 2, 4, 6), 3, to=4).flatten(-2)
    factors = (low | high).view(torch.int8) - 32
    codes = shifted(blocks[:, 32:96].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).flatten(1)
    # A bit that is not set takes 4 away.
    signs = shifted(blocks[:, :32], range(8), 1, to=2).flatten(1)
    return Parts(codes | signs, half(blocks, 108), factors=factors)


def _of_groups(codes: Tensor, blocks: Tensor) -> Parts:
    """Of Q4_K and Q5_K: eight groups, with factors of 6 bits."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    factors = torch.cat((first & 0x3F, (rest & 0x0F) | ((first >> 2) & 0x30)), dim=1)
    offsets = torch.cat((second & 0x3F, (rest >> 4) | ((second >> 2) & 0x30)), dim=1)
    of_bytes = (x.view(torch.int8) for x in (factors, offsets))
    return Parts(codes, half(blocks, 0), -half(blocks, 2), *of_bytes)


def _q4_k(blocks: Tensor) -> Parts:
    codes = shifted(blocks[:, 16:].unflatten(1, (4, 32)), (0, 4), 0x0F)
    return _of_groups(codes.flatten(1), blocks)


def _q5_k(blocks: Tensor) -> Parts:
    codes = shifted(blocks[:, 48:].unflatten(1, (4, 32)), (0, 4), 0x0F).flatten(1)
    return _of_groups(codes | shifted(blocks[:, 16:48], range(8), 1, to=4).flatten(1), blocks)


def _q6_k(blocks: Tensor) -> Parts:
    low = shifted(blocks[:, :128].unflatten(1, (2, 64)), (0, 4), 0x0F).flatten(1)
    high = shifted(blocks[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3, to=4).flatten(1)
    return Parts(low | high, half(blocks, 208), factors=blocks[:, 192:208].view(torch.int8))


@cache
def _pairs(values: tuple[int, ...], device: torch.device) -> Tensor:
    """For each byte, what its low and its high half stand for, as one integer."""
    numbers = torch.tensor(values, dtype=torch.int8, device=device)
    pairs = torch.stack([numbers.repeat(16), numbers.repeat_interleave(16)], 1)
    return pairs.view(torch.int16).flatten()


def _values(values: tuple[int, ...], packed: Tensor) -> Tensor:
    """Bytes `[..., m]` to int8 `[..., 2 * m]`: what low halves stand for, then all high ones."""
    halves = shifted(packed, (0, 4), 0x0F).view(torch.int32)
    # Neighbours in one byte.
    pairs = (halves | halves >> 4) & 0x00FF00FF
    indices = pairs.view(torch.uint8)[..., ::2].flatten().int()
    found = _pairs(values, packed.device).index_select(0, indices)
    return found.view(torch.int8).view(*packed.shape[:-1], -1)


def _iq4_nl(blocks: Tensor) -> Parts:
    return Parts(of_numbers(_values(_IQ4_VALUES, blocks[:, 2:])), half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Parts:
    by = torch.tensor((0, 4), dtype=torch.uint8, device=blocks.device)
    low = ((blocks[:, 4:8].unsqueeze(-1) >> by) & 0x0F).flatten(-2)
    by = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=blocks.device)
    high = ((blocks[:, 2:4].unsqueeze(-1) >> by) & 3).flatten(-2)
    numbers = _values(_IQ4_VALUES, blocks[:, 8:].unflatten(1, (8, 16))).flatten(1)
    factors = (low | high << 4).view(torch.int8) - 32
    return Parts(of_numbers(numbers), half(blocks, 0), factors=factors)


def _mxfp4(blocks: Tensor) -> Parts:
    exponent = blocks[:, :1].int()
    # Half of 2^(exponent - 127), as bits; below 2 it is too small for an ordinary float32.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return Parts(of_numbers(_values(_MXFP4_VALUES, blocks[:, 1:])), bits.view(torch.float32))


def _nvfp4(blocks: Tensor) -> Parts:
    # Halves of E4M3 without a sign, whose code for no number is 0.
    codes = blocks[:, :4] & 0x7F
    is_none = blocks[:, :4] == 0x7F
    scale = widen(codes.view(torch.float8_e4m3fn), torch.float32).masked_fill_(is_none, 0) * 0.5
    numbers = _values(_MXFP4_VALUES, blocks[:, 4:].unflatten(1, (4, 8))).flatten(1)
    return Parts(of_numbers(numbers), scale)


_FUNCTIONS: dict[str, Callable[[Tensor], Parts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    **gguf_grids.FUNCTIONS,
}
