"""Products with a weight of eight or four bits, whose inputs are rounded to eight bits.

Then one instruction is four products, and what few rows cost is reading the weight, once for all
of them. The layouts are those of torch's own products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

MAX_ROWS = 64
"""Rows that are multiplied at once: their sums stay in the processor's first cache."""

_int8 = parallel(".compiled.low_bit:int8_product", integers=8)
_int4 = parallel(".compiled.low_bit:int4_product", integers=8)


def int8_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x @ (codes * scale[:, None]).T`, of rows that are rounded by their largest.

    Args:
        x: `[..., in_features]`; a multiple of 16 inputs, at most 2**17.
        codes: `[out_features / 64, in_features / 4, 64]`, int32 that hold four of int8.
        scale: `[out_features]`, float32.
    """
    (*leading, in_features), [out_features] = x.shape, scale.shape
    x = x.contiguous()
    out = x.new_empty(*leading, out_features)
    num_rows = x.numel() // in_features
    rounded = _buffer(num_rows, in_features, 1)
    for start in range(0, num_rows, MAX_ROWS):
        rows = min(num_rows - start, MAX_ROWS)
        _int8(MAX_ROWS)(
            x.data_ptr() + 2 * start * in_features,
            rounded.data_ptr(),
            codes.data_ptr(),
            scale.data_ptr(),
            out.data_ptr() + 2 * start * out_features,
            rows,
            in_features,
            out_features,
        )
    return out


def int4_product(x: Tensor, codes: Tensor, scales_and_zeros: Tensor) -> Tensor:
    """`x @ ((codes - 8) * scale + zero).T`, of rows of which each 32 are rounded by their largest.

    Args:
        x: `[..., in_features]`.
        codes: `[out_features / 64, in_features, 32]`, uint8 that hold two: of the first 32 outputs
            and, in their upper halves, of the others.
        scales_and_zeros: `[out_features / 64, in_features / group_size, 64, 2]`, bfloat16; groups
            are of a multiple of 32.
    """
    *leading, in_features = x.shape
    num_blocks, num_groups, block_size, _ = scales_and_zeros.shape
    out_features = num_blocks * block_size
    x = x.contiguous()
    out = x.new_empty(*leading, out_features)
    num_rows = x.numel() // in_features
    rounded = _buffer(num_rows, in_features, in_features // 32)
    for start in range(0, num_rows, MAX_ROWS):
        rows = min(num_rows - start, MAX_ROWS)
        _int4(in_features // num_groups, MAX_ROWS)(
            x.data_ptr() + 2 * start * in_features,
            rounded.data_ptr(),
            codes.data_ptr(),
            scales_and_zeros.data_ptr(),
            out.data_ptr() + 2 * start * out_features,
            rows,
            in_features,
            out_features,
        )
    return out


def row_bytes(in_features: int, num_groups: int) -> int:
    """Of a rounded row: its integers, and of each group of inputs two numbers."""
    return in_features + 8 * num_groups


def _buffer(num_rows: int, in_features: int, num_groups: int) -> Tensor:
    """For rounded rows."""
    size = min(num_rows, MAX_ROWS) * row_bytes(in_features, num_groups)
    return torch.empty(size, dtype=torch.uint8)
