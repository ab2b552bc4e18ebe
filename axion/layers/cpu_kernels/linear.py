"""Products of few rows with a weight that oneDNN has packed.

What they cost is reading the weight, or, of more rows, multiplying: each piece of the weight comes
from memory once, in whole lines and in the order in which it lies, and meets all rows there.
oneDNN's own product takes 1.2 to 1.6 times as long. Of many rows it is as fast.

The layout (`axion.layers.onednn.rows_view`): 64 columns of the result lie beside each other, and of
each two neighbouring inputs in 32 bits. A row's sums have one order, however many rows there are.
"""

from __future__ import annotations

from functools import cache

import llvmlite.binding as llvm
import torch
from torch import Tensor

from axion.layers.cpu_kernels import BLOCK, MAX_ROWS
from axion.layers.cpu_kernels.parallel import parallel

_multiply = parallel(".compiled.linear:multiply", integers=6)


@cache
def max_rows(out_features: int) -> int:
    """Of how many rows a product is faster than oneDNN's."""
    if out_features < 2 * BLOCK * torch.get_num_threads():
        return 0  # some threads would have nothing to do
    features = llvm.get_host_cpu_features()
    # Where tiles are multiplied in one instruction (AMX), or pairs in none, only few rows are
    # bounded by memory.
    is_quick = features.get("avx512bf16") and not features.get("amx-bf16")
    return MAX_ROWS if is_quick else 8


def linear(x: Tensor, weight: int, out_features: int) -> Tensor:
    """`[..., in_features]` to `[..., out_features]`, bfloat16.

    Args:
        x: of an even number of features.
        weight: address of the packed weight.
    """
    x = x.contiguous()
    *leading, in_features = x.shape
    num_rows = x.numel() // in_features
    out = x.new_empty(*leading, out_features)
    x_address, out_address = x.data_ptr(), out.data_ptr()
    for row in range(0, num_rows, MAX_ROWS):
        _multiply()(
            x_address + 2 * row * in_features,
            weight,
            out_address + 2 * row * out_features,
            min(MAX_ROWS, num_rows - row),
            in_features,
            out_features,
        )
    return out
