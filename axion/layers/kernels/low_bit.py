"""Products of few rows and a weight of eight or four bits, which is what decoding waits for.

The time is that of reading the weight, so it is read as it is stored, and widened in registers.
Programs multiply by some outputs each; several rows read a weight one after another, from the
second on in the L2 cache.
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
