"""Weights of a few bits become numbers: what products read them by, and all of one at once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from axion.layers.kernels.weights import BITS, LowBitWeight

# Outputs and inputs of a program that unpacks.
_OUTPUTS, _INPUTS = 32, 128


def unpack(weight: LowBitWeight, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight, `[out_features, in_features]`."""
    out_features, row_size = weight.codes.shape
    out = weight.codes.new_empty(out_features, in_features, dtype=dtype)
    _unpack[(triton.cdiv(out_features, _OUTPUTS), triton.cdiv(in_features, _INPUTS))](
        out,
        *weight.tensors,
        in_features,
        out_features,
        row_size,
        **constants(weight),
        OUTPUTS=_OUTPUTS,
        INPUTS=_INPUTS,
    )
    return out


def constants(weight: LowBitWeight) -> dict[str, int | str]:
    """What `low_bit_tile` is compiled for."""
    return {
        "KIND": weight.kind,
        "BITS": BITS[weight.kind],
        "SCALE_KIND": weight.scale_kind,
        "BLOCK_OUTPUTS": weight.block[0],
        "BLOCK_INPUTS": triton.next_power_of_2(weight.block[1]),
    }


@triton.jit
def _unpack(
    out,
    codes,
    scales,
    zeros,
    factors,
    numbers,
    in_features,
    out_features,
    row_size,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    SCALE_KIND: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    start = tl.program_id(1) * INPUTS
    k = start + tl.arange(0, INPUTS)
    tile = low_bit_tile(
        codes,
        scales,
        zeros,
        numbers,
        n,
        start,
        in_features,
        out_features,
        row_size,
        KIND,
        BITS,
        SCALE_KIND,
        BLOCK_OUTPUTS,
        BLOCK_INPUTS,
        INPUTS,
    )
    is_output = n < out_features
    if factors is not None:
        tile *= tl.load(factors + n, mask=is_output, other=0.0)[:, None]
    tl.store(
        out + n.to(tl.int64)[:, None] * in_features + k[None, :],
        tile.to(out.dtype.element_ty),
        mask=is_output[:, None] & (k < in_features)[None, :],
    )


@triton.jit
def low_bit_tile(
    codes,
    scales,
    zeros,
    numbers,
    n,
    start,
    in_features,
    out_features,
    row_size,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    SCALE_KIND: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Some of a `LowBitWeight`, without factors, float32: the outputs `n` and `INPUTS` inputs from
    `start` on, `[outputs, INPUTS]`. What is beyond the last input is not zero, but a number.

    Products of few rows wait for this, so that operations on every number count. Words are split in
    halves until each has one code, with others' bits beside it. Integers become float32 by an
    exponent before their bits, which makes them what 2^23 is less.
    """
    is_output = n < out_features
    word = start // (32 // BITS) + tl.arange(0, INPUTS * BITS // 32)
    place = n.to(tl.int64)[:, None] * row_size + word[None, :]
    code = tl.load(codes + place, mask=is_output[:, None] & (word < row_size)[None, :], other=0)
    GROUPS: tl.constexpr = INPUTS // BLOCK_INPUTS if INPUTS > BLOCK_INPUTS else 1
    code = tl.reshape(code, [n.shape[0], GROUPS, INPUTS * BITS // 32 // GROUPS])
    zero = 0.0
    scale = 1.0
    if zeros is not None or scales is not None:
        group = start // BLOCK_INPUTS + tl.arange(0, GROUPS)
        num_groups = tl.cdiv(in_features, BLOCK_INPUTS)
        place = (n // BLOCK_OUTPUTS).to(tl.int64)[:, None] * num_groups + group[None, :]
        is_group = is_output[:, None] & (group < num_groups)[None, :]
    if zeros is not None:
        zero = tl.load(zeros + place, mask=is_group, other=0).to(tl.float32)[:, :, None]
    if scales is not None:
        scale = tl.load(scales + place, mask=is_group, other=0)
        if SCALE_KIND == "e8m0":
            scale = (scale.to(tl.int32) << 23).to(tl.float32, bitcast=True)
        elif SCALE_KIND == "e4m3":
            scale = _e4m3(scale.to(tl.int32) << 24)
        scale = scale.to(tl.float32)[:, :, None]
    if KIND == "e4m3" or KIND == "e2m1":
        # To the highest bits, where a shift copies the sign.
        code = tl.interleave(code << 16, code)
        code = tl.interleave(code << 8, code)
        number = _e4m3(code) if BITS == 8 else _e2m1(tl.interleave(code << 4, code))
        number *= scale
    else:
        code = tl.interleave(code, code >> 16)
        code = tl.interleave(code, code >> 8)
        if BITS == 4:
            code = tl.interleave(code, code >> 4)
        code &= (1 << BITS) - 1
        if KIND == "table":
            code = tl.reshape(code, [n.shape[0], INPUTS])
            table = tl.broadcast_to(tl.load(numbers + tl.arange(0, 16))[None, :], [n.shape[0], 16])
            number = tl.reshape(tl.gather(table, code, 1), [n.shape[0], GROUPS, INPUTS // GROUPS])
        else:
            SIGN: tl.constexpr = 128 if KIND == "int8" else 0
            number = ((code ^ SIGN) | 0x4B000000).to(tl.float32, bitcast=True)
            number -= 8388608.0 + SIGN + zero
        number *= scale
    return tl.reshape(number, [n.shape[0], INPUTS])


# Float32 has the same parts as E4M3 and E2M1, and what is too small for its exponent is exact there
# too; only the exponent begins elsewhere.
@triton.jit
def _e4m3(code):
    return (code >> 4 & -0x78100000).to(tl.float32, bitcast=True) * 2.0**120


@triton.jit
def _e2m1(code):
    return (code >> 6 & -0x7E400000).to(tl.float32, bitcast=True) * 2.0**126
