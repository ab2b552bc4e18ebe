"""Products of few rows with a packed weight."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import BF16, F32, I32, LANES
from axion.layers.cpu_kernels.compiled.threads import share

_BLOCK = 64  # columns that lie beside each other
# Rows of a tile to its vectors of columns: as many sums as there are registers, less what is read.
_VECTORS = {1: 4, 4: 4, 8: 2}


def multiply(tile_rows: int) -> Callable[[Any], None]:
    """For `linear`."""
    vectors = _VECTORS[tile_rows]
    columns = vectors * LANES

    def compute(arguments: Any) -> None:
        x, weight, out, rows, in_features, out_features = arguments[0]
        start, end = share(out_features // columns)
        for tile in range(start, end):
            column = tile * columns
            block, rest = column // _BLOCK, column % _BLOCK
            of_tile = weight + 2 * block * _BLOCK * in_features + 4 * rest
            _multiply_tile(
                tile_rows, vectors, x, of_tile, out + 2 * column, rows, in_features, out_features
            )

    return compute


@intrinsic(prefer_literal=True)
def _multiply_tile(
    typing_context: Any,
    tile_rows: types.IntegerLiteral,
    vectors: types.IntegerLiteral,
    x: types.Integer,
    weight: types.Integer,
    out: types.Integer,
    rows: types.Integer,
    in_features: types.Integer,
    out_features: types.Integer,
) -> Any:
    """`tile_rows` rows of `x` times `vectors * LANES` columns; above `rows` the last repeats."""
    num_rows, num_vectors = tile_rows.literal_value, vectors.literal_value

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, weight, out, rows, in_features, out_features = values[2:]
        of_int = x.type

        def number(value: int) -> Any:
            return ir.Constant(of_int, value)

        row_bytes = builder.mul(in_features, number(2))
        last = builder.sub(rows, number(1))
        indices = [number(row) for row in range(num_rows)]
        indices = [
            builder.select(builder.icmp_signed("<", index, rows), index, last) for index in indices
        ]
        x_rows = [builder.add(x, builder.mul(index, row_bytes)) for index in indices]
        end = builder.add(x_rows[0], row_bytes)
        offsets = [builder.sub(row, x_rows[0]) for row in x_rows]

        entry, body = builder.block, builder.append_basic_block("pairs")
        builder.branch(body)
        builder.position_at_end(body)
        # The address of the first row's pair, and of the weight's vectors for that pair.
        pair, of_pair = builder.phi(of_int), builder.phi(of_int)
        pair.add_incoming(x_rows[0], entry)
        of_pair.add_incoming(weight, entry)
        before = [[builder.phi(F32.of_llvm) for _ in range(num_vectors)] for _ in offsets]
        columns = [
            simd.load(builder, of_pair, number(LANES * vector), I32.of_llvm, 4)
            for vector in range(num_vectors)
        ]
        sums = []
        for offset, of_row in zip(offsets, before, strict=True):
            inputs = simd.broadcast(builder, builder.add(pair, offset), I32.of_llvm)
            sums.append(
                [
                    simd.dot_bf16(context, builder, old, inputs, weights)
                    for old, weights in zip(of_row, columns, strict=True)
                ]
            )
        for old, new in zip(chain(*before), chain(*sums), strict=True):
            old.add_incoming(ir.Constant(F32.of_llvm, None), entry)
            old.add_incoming(new, body)
        next_pair = builder.add(pair, number(4))
        pair.add_incoming(next_pair, body)
        of_pair.add_incoming(builder.add(of_pair, number(4 * _BLOCK)), body)
        done = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_unsigned("<", next_pair, end), body, done)
        builder.position_at_end(done)
        for index, of_row in zip(indices, sums, strict=True):
            of_out = builder.mul(index, out_features)
            for vector, total in enumerate(of_row):
                place = builder.add(of_out, number(LANES * vector))
                simd.store(builder, builder.fptrunc(total, BF16), out, place, 2)
        return context.get_dummy_value()

    return types.void(*(8 * [types.int64])), generate
