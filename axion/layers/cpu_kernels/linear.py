"""Products of few rows with a weight that oneDNN has packed.

What they cost is reading the weight, so all rows of a step take part in one reading of it, in
tiles of as many rows and columns as there are registers to sum up in. oneDNN's own product reads
it a fifth slower. Of many rows arithmetic is what costs, and oneDNN's is better.

The layout (`axion.layers.onednn.rows_view`): 64 columns of the result lie beside each other, and of
each two neighbouring inputs in 32 bits.
"""

from __future__ import annotations

from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel

MAX_ROWS = 16
"""More rows are multiplied faster by oneDNN."""

TILES = (1, 4, 8)
_multiply = parallel(".compiled.linear:multiply", integers=6)


def linear(x: Tensor, weight: int, out_features: int) -> Tensor:
    """`[num_rows, in_features]` to `[num_rows, out_features]`, both contiguous bfloat16.

    Args:
        weight: address of the packed weight, whose rows are a multiple of 64.
    """
    num_rows, in_features = x.shape
    out = x.new_empty(num_rows, out_features)
    x_address, out_address = x.data_ptr(), out.data_ptr()
    row = 0
    while row < num_rows:
        rows = min(num_rows - row, 8)
        _multiply(next(tile for tile in TILES if tile >= rows))(
            x_address + 2 * row * in_features,
            weight,
            out_address + 2 * row * out_features,
            rows,
            in_features,
            out_features,
        )
        row += rows
    return out
