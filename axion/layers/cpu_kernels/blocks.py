"""Products with weights of blocks, as GGUF files have them.

Inputs are rounded to eight bits in groups of 32, each by its largest, and multiplied as integers,
as llama.cpp does. The weight stays at its bits: 16 columns of the result lie beside each other, one
in each lane, so that memory is read in sequence, and what is unpacked once is multiplied by all
rows of a tile.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.layouts import GROUP
from axion.layers.cpu_kernels.parallel import ParallelKernel, parallel

_TILES = (1, 4, 8)
# Rows that are rounded and multiplied at once: so many stay in the processor's caches.
_MAX_ROWS = 64
RECORD = 48
"""Bytes of 32 rounded inputs: the codes, their scale, and what is known of their sums."""

_multiply = parallel(".compiled.blocks:multiply", integers=8)


def product(x: Tensor, codes: Tensor, scales: Tensor, name: str) -> Tensor:
    """`[num_rows, in_features]` to `[num_rows, out_features]`, both contiguous bfloat16.

    A row's result does not depend on the others.

    Args:
        codes: `[out_features / 16, in_features / 32, group_bytes / 4, 16]`, int32, and
        scales: `[out_features / 16, in_features / span, 16 * span_bytes]`, uint8: contiguous, as
            the layout has them.
        name: of the layout.
    """
    num_rows, in_features = x.shape
    out_features = LANES * len(codes)
    kernels = _kernels(name)
    tile = next((tile for tile in kernels if tile >= num_rows), _TILES[-1])
    out = x.new_empty(num_rows, out_features)
    num_records = min(-(-num_rows // tile) * tile, _MAX_ROWS) * in_features // GROUP
    rounded = torch.empty(num_records * RECORD, dtype=torch.uint8)
    for row in range(0, num_rows, _MAX_ROWS):
        kernels[tile](
            x.data_ptr() + 2 * row * in_features,
            rounded.data_ptr(),
            codes.data_ptr(),
            scales.data_ptr(),
            out.data_ptr() + 2 * row * out_features,
            min(num_rows - row, _MAX_ROWS),
            in_features,
            out_features,
        )
    return out


@cache
def _kernels(name: str) -> dict[int, ParallelKernel]:
    """By the rows of their tile. All are there from the first product on, which is no request's."""
    kernels = {tile: _multiply(name, tile) for tile in _TILES}
    for kernel in kernels.values():
        kernel.load()
    return kernels
