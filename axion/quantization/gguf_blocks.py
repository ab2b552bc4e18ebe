"""The number formats of GGUF files (ggml's `ggml-quants.c`, gguf's `quants.py`), in torch.

A row of numbers is stored as blocks, each of some bytes: `axion.hub.gguf.TENSOR_TYPES` has the
sizes. A function here takes blocks `[n, num_bytes]`, uint8, and writes numbers `[n, block_size]`,
float32: the same to the last bit as gguf's own in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from axion.hub.gguf import TensorType
from axion.quantization import gguf_grids
from axion.quantization.float8 import widen
from axion.quantization.gguf_bits import half, nibbles, shifted

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Of E2M1, doubled.
_MXFP4_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def dequantize(stored: Tensor, kind: TensorType, out: Tensor | None = None) -> Tensor:
    """Numbers `[..., columns]`, float32, from bytes `[..., columns / block_size * num_bytes]`.

    Args:
        out: a buffer for the numbers, `[n]`: fresh memory costs more than all of the arithmetic.
    """
    blocks = stored.reshape(-1, kind.num_bytes)
    if out is None:
        out = torch.empty(len(blocks) * kind.block_size, device=stored.device)
    out = out[: len(blocks) * kind.block_size].view(-1, kind.block_size)
    _FUNCTIONS[kind.name](blocks, out)
    return out.view(*stored.shape[:-1], -1)


def four_bits(stored: Tensor, kind: TensorType) -> tuple[Tensor, Tensor, Tensor] | None:
    """A weight's rows as `(code - 8) * scale + zero`, with one scale and zero for 32 numbers.

    Returns:
        Codes `[rows, columns]` uint8, scales and zeros `[rows, columns / 32]` float32; None for a
        type that has another form.
    """
    blocks = stored.reshape(-1, kind.num_bytes)
    if kind.name == "Q4_0":
        codes, scale = nibbles(blocks[:, 2:]), half(blocks, 0)
        zero = torch.zeros_like(scale)
    elif kind.name == "Q4_1":
        codes, scale = nibbles(blocks[:, 4:]), half(blocks, 0)
        zero = 8 * scale + half(blocks, 2)
    elif kind.name == "Q4_K":
        codes = shifted(blocks[:, 16:].unflatten(1, (4, 32)), (0, 4), 0x0F)
        scale, offset = _scales_and_offsets(blocks)
        zero = 8 * scale - offset
    else:
        return None
    codes, scale, zero = (x.reshape(*stored.shape[:-1], -1) for x in (codes, scale, zero))
    return codes, scale, zero


def eight_bits(stored: Tensor, kind: TensorType, group_size: int) -> tuple[Tensor, Tensor]:
    """A weight's rows as `code * scale`.

    Of Q8_0 these are its own. Others are rounded to 127 steps either way from 0, with scales that
    are bfloat16 already.

    Args:
        group_size: numbers that share a scale; 32 of Q8_0.

    Returns:
        Codes `[rows, columns]`, int8, and scales `[rows, columns / group_size]`, float32.
    """
    if kind.name == "Q8_0":
        blocks = stored.reshape(-1, kind.num_bytes)
        codes, scale = blocks[:, 2:].view(torch.int8), half(blocks, 0)
    else:
        groups = dequantize(stored, kind).unflatten(-1, (-1, group_size))
        scale = (groups.abs().amax(-1, keepdim=True) / 127).clamp_(min=1e-30).bfloat16().float()
        codes = (groups / scale).round_().clamp_(-127, 127).to(torch.int8)
    return codes.reshape(len(stored), -1), scale.reshape(len(stored), -1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """`[n, 4]` to `[n, 32]`: each bit as 16 or 0."""
    return shifted(packed, range(8), 1, to=4).transpose(-1, -2).flatten(-2)


def _f32(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(torch.float32))


def _f16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(torch.float16))


def _bf16(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks.contiguous().view(torch.bfloat16))


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(nibbles(blocks[:, 2:])).sub_(8).mul_(half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    out.copy_(nibbles(blocks[:, 4:])).mul_(half(blocks, 0)).add_(half(blocks, 2))


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    numbers = nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    out.copy_(numbers).sub_(16).mul_(half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    numbers = nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    out.copy_(numbers).mul_(half(blocks, 0)).add_(half(blocks, 2))


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(half(blocks, 0))


def _q2_k(blocks: Tensor, out: Tensor) -> None:
    scales = shifted(blocks[:, :16], (0, 4), 0x0F).float()
    scale, offset = half(blocks, 80) * scales[:, 0], half(blocks, 82) * scales[:, 1]
    numbers = shifted(blocks[:, 16:80].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    out = out.view(-1, 16, 16).copy_(numbers.view(-1, 16, 16))
    out.mul_(scale[..., None]).sub_(offset[..., None])


def _q3_k(blocks: Tensor, out: Tensor) -> None:
    low = nibbles(blocks[:, 96:104])
    high = shifted(blocks[:, 104:108], (0, 2, 4, 6), 3, to=4).flatten(-2)
    scale = half(blocks, 108) * ((low | high).float() - 32)
    numbers = shifted(blocks[:, 32:96].unflatten(1, (2, 32)), (0, 2, 4, 6), 3)
    # A bit that is not set takes 4 away.
    signs = shifted(blocks[:, :32], range(8), 1, to=2)
    numbers = numbers.view(-1, 16, 16) | signs.view(-1, 16, 16)
    out.view(-1, 16, 16).copy_(numbers).sub_(4).mul_(scale[..., None])


def _scales_and_offsets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: 6 bits each, `[n, 8, 1]`, times the block's."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 0x3F, (rest & 0x0F) | ((first >> 2) & 0x30)), dim=1)
    offsets = torch.cat((second & 0x3F, (rest >> 4) | ((second >> 2) & 0x30)), dim=1)
    scale, offset = half(blocks, 0) * scales.float(), half(blocks, 2) * offsets.float()
    return scale[..., None], offset[..., None]


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    scale, offset = _scales_and_offsets(blocks)
    numbers = shifted(blocks[:, 16:].unflatten(1, (4, 32)), (0, 4), 0x0F)
    out.view(-1, 8, 32).copy_(numbers.view(-1, 8, 32)).mul_(scale).sub_(offset)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    scale, offset = _scales_and_offsets(blocks)
    numbers = shifted(blocks[:, 48:].unflatten(1, (4, 32)), (0, 4), 0x0F).reshape(-1, 8, 32)
    fifth = shifted(blocks[:, 16:48], range(8), 1, to=4)
    out.view(-1, 8, 32).copy_(numbers | fifth).mul_(scale).sub_(offset)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    scale = half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    low = shifted(blocks[:, :128].unflatten(1, (2, 64)), (0, 4), 0x0F).reshape(-1, 16, 16)
    high = shifted(blocks[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3, to=4)
    numbers = low | high.reshape(-1, 16, 16)
    out.view(-1, 16, 16).copy_(numbers).sub_(32).mul_(scale[..., None])


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


def _iq4_nl(blocks: Tensor, out: Tensor) -> None:
    out.copy_(_values(_IQ4_VALUES, blocks[:, 2:])).mul_(half(blocks, 0))


def _iq4_xs(blocks: Tensor, out: Tensor) -> None:
    by = torch.tensor((0, 4), dtype=torch.uint8, device=blocks.device)
    low = ((blocks[:, 4:8].unsqueeze(-1) >> by) & 0x0F).flatten(-2)
    by = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=blocks.device)
    high = ((blocks[:, 2:4].unsqueeze(-1) >> by) & 3).flatten(-2)
    scale = half(blocks, 0) * ((low | (high << 4)).float() - 32)
    numbers = _values(_IQ4_VALUES, blocks[:, 8:].unflatten(1, (8, 16)))
    out.view(-1, 8, 32).copy_(numbers).mul_(scale[..., None])


def _mxfp4(blocks: Tensor, out: Tensor) -> None:
    exponent = blocks[:, :1].int()
    # Half of 2^(exponent - 127), as bits; below 2 it is too small for an ordinary float32.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    out.copy_(_values(_MXFP4_VALUES, blocks[:, 1:])).mul_(bits.view(torch.float32))


def _nvfp4(blocks: Tensor, out: Tensor) -> None:
    # Halves of E4M3 without a sign, whose code for no number is 0.
    codes = blocks[:, :4] & 0x7F
    is_none = blocks[:, :4] == 0x7F
    scale = widen(codes.view(torch.float8_e4m3fn), torch.float32).masked_fill_(is_none, 0) * 0.5
    numbers = _values(_MXFP4_VALUES, blocks[:, 4:].unflatten(1, (4, 8)))
    out.view(-1, 4, 16).copy_(numbers).mul_(scale[..., None])


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
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
    "NVFP4": _nvfp4,
    **gguf_grids.FUNCTIONS,
}
