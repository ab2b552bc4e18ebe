"""The number formats of GGUF files (ggml's `ggml-quants.c`, gguf's `quants.py`), in torch.

A row of numbers is stored as blocks, each of some bytes: `axion.hub.gguf.TENSOR_TYPES` has the
sizes. A function here takes blocks `[n, num_bytes]`, uint8, to numbers `[n, block_size]`, float32,
the same to the last bit as gguf's own in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from axion.hub.gguf import TensorType

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Of E2M1, doubled.
_MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def dequantize(stored: Tensor, kind: TensorType) -> Tensor:
    """Numbers `[..., columns]`, float32, from bytes `[..., columns / block_size * num_bytes]`."""
    blocks = stored.reshape(-1, kind.num_bytes)
    return _FUNCTIONS[kind.name](blocks).reshape(*stored.shape[:-1], -1)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at this byte of each block, `[n, 1]` float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _shifted(packed: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """`[..., m]` to `[..., len(shifts), m]`: of each byte the bits from there on."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-2) >> by[:, None]) & mask


def _nibbles(packed: Tensor) -> Tensor:
    """`[n, m]` to `[n, 2 * m]`: all low halves, then all high ones."""
    return _shifted(packed, (0, 4), 0x0F).flatten(-2)


def _fifth_bits(packed: Tensor) -> Tensor:
    """`[n, 4]` to `[n, 32]`: each bit as 16 or 0."""
    bits = packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((bits & 1) << 4).flatten(-2)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (numbers.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * numbers.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    scales = _shifted(blocks[:, :16], (0, 4), 0x0F).float()
    scale, offset = _half(blocks, 80) * scales[:, 0], _half(blocks, 82) * scales[:, 1]
    numbers = _shifted(blocks[:, 16:80].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    return numbers.reshape(-1, 16, 16).float() * scale[..., None] - offset[..., None]


def _q3_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, 96:104])
    high = _shifted(blocks[:, 104:108], (0, 2, 4, 6), 3).flatten(-2)
    scale = _half(blocks, 108) * ((low | (high << 4)).float() - 32)
    numbers = _shifted(blocks[:, 32:96].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    # A bit that is not set is an offset of 4.
    signs = _shifted(blocks[:, :32], tuple(range(8)), 1)
    numbers = numbers.reshape(-1, 16, 16).float() - (4 - 4 * signs.reshape(-1, 16, 16).float())
    return scale[..., None] * numbers


def _scales_and_offsets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: 6 bits each, `[n, 8, 1]`, times the block's."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 0x3F, (rest & 0x0F) | ((first >> 2) & 0x30)), dim=1)
    offsets = torch.cat((second & 0x3F, (rest >> 4) | ((second >> 2) & 0x30)), dim=1)
    scale, offset = _half(blocks, 0) * scales.float(), _half(blocks, 2) * offsets.float()
    return scale[..., None], offset[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scale, offset = _scales_and_offsets(blocks)
    numbers = _shifted(blocks[:, 16:].unflatten(1, (4, 32)), (0, 4), 0x0F)
    return numbers.reshape(-1, 8, 32).float() * scale - offset


def _q5_k(blocks: Tensor) -> Tensor:
    scale, offset = _scales_and_offsets(blocks)
    numbers = _shifted(blocks[:, 48:].unflatten(1, (4, 32)), (0, 4), 0x0F).reshape(-1, 8, 32)
    fifth = _shifted(blocks[:, 16:48], tuple(range(8)), 1) << 4
    return (numbers | fifth).float() * scale - offset


def _q6_k(blocks: Tensor) -> Tensor:
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    low = _shifted(blocks[:, :128].unflatten(1, (2, 64)), (0, 4), 0x0F).reshape(-1, 16, 16)
    high = _shifted(blocks[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).reshape(-1, 16, 16)
    return scale[..., None] * ((low | (high << 4)).float() - 32)


def _values(values: tuple[int, ...], indices: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=indices.device)[indices.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _values(_IQ4_VALUES, _nibbles(blocks[:, 2:]))


def _iq4_xs(blocks: Tensor) -> Tensor:
    by = torch.tensor((0, 4), dtype=torch.uint8, device=blocks.device)
    low = ((blocks[:, 4:8].unsqueeze(-1) >> by) & 0x0F).flatten(-2)
    by = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=blocks.device)
    high = ((blocks[:, 2:4].unsqueeze(-1) >> by) & 3).flatten(-2)
    scale = _half(blocks, 0) * ((low | (high << 4)).float() - 32)
    indices = _shifted(blocks[:, 8:].unflatten(1, (8, 16)), (0, 4), 0x0F).flatten(-2)
    return scale[..., None] * _values(_IQ4_VALUES, indices)


def _mxfp4(blocks: Tensor) -> Tensor:
    exponent = blocks[:, :1].int()
    # Half of 2^(exponent - 127), as bits; below 2 it is too small for an ordinary float32.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return bits.view(torch.float32) * _values(_MXFP4_VALUES, _nibbles(blocks[:, 1:]))


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
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
}
