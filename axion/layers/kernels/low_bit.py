"""Products of few rows and a weight of eight or four bits, which is what decoding waits for.

The time is that of reading the weight, so it is read as it is stored, and widened in registers.
Programs multiply by some outputs each; several rows read a weight one after another, from the
second on in the L2 cache. `low_bit_tile` is what other products read such weights by.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Outputs of a program, and bytes of each that it reads at once: 8 KiB together, so that the
# programs of a multiprocessor have as much under way as the memory's latency asks for.
_OUTPUTS = 8
_BYTES = 1024


def int8_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x @ (codes * scale[:, None]).T`, summed in float32.

    Args:
        x: `[num_rows, in_features]`.
        codes: `[out_features, in_features]`, int8.
        scale: `[out_features]`.
    """
    out_features, in_features = codes.shape
    x = x.contiguous()
    out = x.new_empty(len(x), out_features)
    _int8[(len(x), triton.cdiv(out_features, _OUTPUTS))](
        out, x, codes, scale, out_features, in_features, OUTPUTS=_OUTPUTS, BLOCK=_BYTES
    )
    return out


def int4_product(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """`x @ ((codes - zeros) * scales).T`, by groups of inputs, summed in float32.

    Args:
        x: `[num_rows, in_features]`.
        codes: `[out_features, in_features / 2]`, uint8, the earlier input's in the lower half.
        scales: `[out_features, num_groups]`.
        zeros: `[out_features, num_groups]`, uint8.
    """
    out_features, num_groups = scales.shape
    half = codes.shape[1] // num_groups
    x = x.contiguous()
    out = x.new_empty(len(x), out_features)
    _int4[(len(x), triton.cdiv(out_features, _OUTPUTS))](
        out,
        x,
        codes,
        scales,
        zeros,
        out_features,
        num_groups,
        HALF=half,
        OUTPUTS=_OUTPUTS,
        GROUPS=max(1, _BYTES // half // 2),
    )
    return out


@triton.jit
def _int8(
    out,
    x,
    codes,
    scale,
    out_features,
    in_features,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = n < out_features
    k = tl.arange(0, BLOCK)
    x += row * in_features
    codes += n.to(tl.int64)[:, None] * in_features
    total = tl.zeros([OUTPUTS, BLOCK], tl.float32)
    for start in range(0, in_features, BLOCK):
        is_input = start + k < in_features
        value = tl.load(x + start + k, mask=is_input, other=0.0).to(tl.float32)
        code = tl.load(codes + start + k, mask=is_output[:, None] & is_input, other=0)
        total += code.to(tl.float32) * value
    result = tl.sum(total, 1) * tl.load(scale + n, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + row * out_features + n, result.to(out.dtype.element_ty), mask=is_output)


@triton.jit
def _int4(
    out,
    x,
    codes,
    scales,
    zeros,
    out_features,
    num_groups,
    HALF: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Products with the codes are summed by groups, which are then scaled: a group's sum is
    `scale * (sum(x * code) - zero * sum(x))`."""
    row = tl.program_id(0)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = n < out_features
    group = tl.arange(0, GROUPS)
    byte = group[:, None] * HALF + tl.arange(0, HALF)
    pair = 2 * byte[:, :, None] + tl.arange(0, 2)
    x += row * num_groups * (2 * HALF)
    of_output = n.to(tl.int64)[:, None] * num_groups + group
    of_byte = n.to(tl.int64)[:, None, None] * (num_groups * HALF) + byte
    total = tl.zeros([OUTPUTS, GROUPS], tl.float32)
    for start in range(0, num_groups, GROUPS):
        is_group = start + group < num_groups
        values = tl.load(x + start * (2 * HALF) + pair, mask=is_group[:, None, None], other=0.0)
        even, odd = tl.split(values.to(tl.float32))
        mask = is_output[:, None] & is_group
        code = tl.load(codes + start * HALF + of_byte, mask=mask[:, :, None], other=0)
        products = (code & 15).to(tl.float32) * even + (code >> 4).to(tl.float32) * odd
        zero = tl.load(zeros + start + of_output, mask=mask, other=0).to(tl.float32)
        scale = tl.load(scales + start + of_output, mask=mask, other=0.0).to(tl.float32)
        total += scale * (tl.sum(products, 2) - zero * tl.sum(even + odd, 1))
    tl.store(
        out + row * out_features + n, tl.sum(total, 1).to(out.dtype.element_ty), mask=is_output
    )


@triton.jit
def low_bit_tile(
    codes,
    scales,
    zeros,
    n,
    start,
    in_features,
    out_features,
    KIND: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Some of a `LowBitWeight`, float32: the outputs `n` and `INPUTS` inputs from `start` on,
    `[outputs, INPUTS]`. What is beyond the last input is not zero, but a number."""
    FOUR_BITS: tl.constexpr = KIND == "uint4" or KIND == "e2m1"
    PACKED: tl.constexpr = 2 if FOUR_BITS else 1
    is_output = n < out_features
    byte = start // PACKED + tl.arange(0, INPUTS // PACKED)
    row_size = in_features // PACKED
    place = n.to(tl.int64)[:, None] * row_size + byte[None, :]
    code = tl.load(codes + place, mask=is_output[:, None] & (byte < row_size)[None, :], other=0)
    if FOUR_BITS:
        code = tl.interleave(code & 15, code >> 4)
    if KIND == "e4m3":
        number = _small_float(code, 8, 3)
    elif KIND == "e2m1":
        number = _small_float(code, 4, 1)
    else:
        number = code.to(tl.float32)
    GROUPS: tl.constexpr = INPUTS // BLOCK_INPUTS if INPUTS > BLOCK_INPUTS else 1
    group = start // BLOCK_INPUTS + tl.arange(0, GROUPS)
    num_groups = tl.cdiv(in_features, BLOCK_INPUTS)
    place = (n // BLOCK_OUTPUTS).to(tl.int64)[:, None] * num_groups + group[None, :]
    is_group = is_output[:, None] & (group < num_groups)[None, :]
    scale = tl.load(scales + place, mask=is_group, other=0)
    if scale.dtype == tl.uint8:
        scale = (scale.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    number = tl.reshape(number, [n.shape[0], GROUPS, INPUTS // GROUPS])
    if zeros is not None:
        number -= tl.load(zeros + place, mask=is_group, other=0).to(tl.float32)[:, :, None]
    return tl.reshape(number * scale.to(tl.float32)[:, :, None], [n.shape[0], INPUTS])


@triton.jit
def _small_float(code, BITS: tl.constexpr, MANTISSA: tl.constexpr):
    """What codes of a sign, an exponent and a mantissa are. Those of float16 have the same parts,
    and what is too small for its exponent is exact there too; only the exponent begins elsewhere.
    """
    bits = code.to(tl.int32)
    magnitude = (bits & (1 << (BITS - 1)) - 1) << (10 - MANTISSA)
    half = (magnitude | (bits >> (BITS - 1)) << 15).to(tl.int16).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 2.0 ** (16 - 2 ** (BITS - MANTISSA - 2))
