"""Each row multiplied by its expert's weight, by the products of `linear`, `low_bit` and `blocks`.

One expert has little to compute in a decode step: were each multiplied in a call of its own, the
threads would meet, and memory would pause, as often as there are experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels import MAX_ROWS, blocks, low_bit
from axion.layers.cpu_kernels.layouts import GROUP, LAYOUTS
from axion.layers.cpu_kernels.parallel import parallel
from axion.layers.cpu_kernels.weights import PackedExperts, PackedWeight

_MOST_BEHIND = 7  # rows that are read behind the last, of a tile that they do not fill
_multiply = parallel(".compiled.grouped:grouped_product", integers=9)


def grouped_product(x: Tensor, weight: PackedExperts, ends: Tensor) -> Tensor:
    """`x @ weight[expert].T` for the rows of each expert; a row's bits are those of the product
    with its expert alone.

    Args:
        x: `[num_rows, in_features]`, sorted by expert.
        ends: `[num_experts]` int32, where each expert's rows end.

    Returns:
        `[num_rows, out_features]`; what lies behind the last expert's end is undefined.
    """
    first, num_rows = weight.first, len(x)
    in_features, out_features = first.in_features, first.out_features
    x, ends = x.contiguous(), ends.contiguous()
    assert x.shape[1] == in_features
    assert len(ends) == len(weight.addresses)
    out = x.new_empty(num_rows, out_features)
    rows, row_bytes, max_rows = x, 2 * in_features, MAX_ROWS
    if first.kind != "bf16":
        row_bytes, max_rows = _rounded_bytes(first), low_bit.MAX_ROWS
        rows = torch.empty((num_rows + _MOST_BEHIND) * row_bytes, dtype=torch.uint8)
    _multiply(first.kind, first.group_size, max_rows)(
        x.data_ptr(),
        rows.data_ptr(),
        row_bytes,
        weight.addresses.data_ptr(),
        ends.data_ptr(),
        out.data_ptr(),
        len(ends),
        in_features,
        out_features,
    )
    return out


def _rounded_bytes(weight: PackedWeight) -> int:
    """Of a row of inputs, as the product with such a weight reads it."""
    if weight.kind in LAYOUTS:
        return weight.in_features // GROUP * blocks.RECORD
    num_groups = weight.in_features // 32 if weight.kind == "int4" else 1
    return low_bit.row_bytes(weight.in_features, num_groups)
