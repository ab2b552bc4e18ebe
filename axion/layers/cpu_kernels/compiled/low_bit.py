"""For `low_bit`.

A thread's part of a weight is read in one sequence, and each pass over a piece of it asks memory
for the next: without that, passes of further rows, from the first cache, would leave memory idle.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from axion.layers.cpu_kernels import BLOCK, LANES
from axion.layers.cpu_kernels.compiled import integers, simd
from axion.layers.cpu_kernels.compiled.simd import F32, I32
from axion.layers.cpu_kernels.compiled.threads import barrier, share

_VECTORS = BLOCK // LANES
_CHUNK = 128  # inputs that all rows are multiplied by before the next, of eight bits
GROUP = 32  # and of four bits; each is rounded by its largest
_GROUP_BYTES = BLOCK * GROUP // 2
CODES_BYTES = BLOCK * GROUP
_TILE = 4  # rows, where there are several
_AHEAD = 8  # groups from one that is read to one that is asked for
_INT = ir.IntType(64)

Columns = Callable[[Any], list[Any]]


def int8_product(max_rows: int) -> Callable[[Any], None]:
    room_bytes, multiply_block = sums_bytes(max_rows), int8_block()

    def compute(arguments: Any) -> None:
        x, rounded, codes, scale, out, num_rows, in_features, out_features = arguments[0]
        round_rows(x, rounded, num_rows, in_features, in_features)
        room = simd.on_stack(room_bytes)
        start, end = share(out_features // BLOCK)
        for block in range(start, end):
            multiply_block(
                room, rounded, num_rows, codes, scale, out, in_features, out_features, block
            )

    return compute


def int4_product(group_size: int, max_rows: int) -> Callable[[Any], None]:
    """
    Args:
        group_size: inputs that share a scale.
    """
    room_bytes, multiply_block = CODES_BYTES + sums_bytes(max_rows), int4_block(group_size)

    def compute(arguments: Any) -> None:
        x, rounded, codes, pairs, out, num_rows, in_features, out_features = arguments[0]
        round_rows(x, rounded, num_rows, in_features, GROUP)
        room = simd.on_stack(room_bytes)
        start, end = share(out_features // BLOCK)
        for block in range(start, end):
            multiply_block(
                room, rounded, num_rows, codes, pairs, out, in_features, out_features, block
            )

    return compute


def sums_bytes(num_rows: int) -> int:
    """Bytes of a block's sums of so many rows."""
    return 4 * BLOCK * (num_rows + _TILE - 1)


def int8_block() -> Callable[..., None]:
    """The product of rounded rows with a block of columns. It needs room for the sums."""
    return _by_tiles(_int8_block)


def int4_block(group_size: int) -> Callable[..., None]:
    """The same. It needs room for the codes of `GROUP` inputs, and behind them for the sums."""
    return _by_tiles(lambda tile_rows: _int4_block(tile_rows, group_size))


def _by_tiles(block: Callable[[int], Callable[..., None]]) -> Callable[..., None]:
    """With the rows that a vector of codes is multiplied by while it is in a register."""
    one, several = block(1), block(_TILE)

    @numba.njit
    def multiply(room: int, rounded: int, num_rows: int, *others: int) -> None:
        if num_rows == 1:
            one(room, rounded, num_rows, *others)
        else:
            several(room, rounded, num_rows, *others)

    return multiply


def _int8_block(tile_rows: int) -> Callable[..., None]:
    @numba.njit(error_model="numpy")
    def multiply(
        sums: int,
        rounded: int,
        num_rows: int,
        codes: int,
        scale: int,
        out: int,
        in_features: int,
        out_features: int,
        block: int,
    ) -> None:
        row_bytes = in_features + 8
        _clear(sums, num_rows + tile_rows - 1)
        for first in range(0, in_features, _CHUNK):
            of_chunk = codes + (block * in_features + first) * BLOCK
            num_quads = min(_CHUNK, in_features - first) // 4
            for row in range(0, num_rows, tile_rows):
                _add_int8(
                    tile_rows,
                    rounded + first,
                    row,
                    num_rows,
                    row_bytes,
                    of_chunk,
                    num_quads,
                    sums,
                )
        for row in range(num_rows):
            of_row = rounded + row * row_bytes + in_features
            step = simd.spread(simd.load_float(of_row, 0))
            # A code was taken as 128 more.
            excess = -128 * numba.int32(simd.load_float(of_row, 1))
            for column in range(0, BLOCK, LANES):
                place = block * BLOCK + column
                total = integers.load_int32(sums, row * BLOCK + column, numba.int32(excess))
                total = total * simd.load_f32(scale, place) * step
                simd.store_bf16(out, row * out_features + place, total)

    return multiply


def _int4_block(tile_rows: int, group_size: int) -> Callable[..., None]:
    @numba.njit(error_model="numpy")
    def multiply(
        room: int,
        rounded: int,
        num_rows: int,
        codes: int,
        pairs: int,
        out: int,
        in_features: int,
        out_features: int,
        block: int,
    ) -> None:
        num_groups = in_features // GROUP
        row_bytes = in_features + 8 * num_groups
        sums = room + CODES_BYTES
        _clear(sums, num_rows + tile_rows - 1)
        for group in range(num_groups):
            place = block * num_groups + group
            of_pairs = pairs + 4 * BLOCK * (place * GROUP // group_size)
            _unpack(codes + place * _GROUP_BYTES, of_pairs, room)
            for row in range(0, num_rows, tile_rows):
                _add_int4(
                    tile_rows,
                    rounded + group * GROUP,
                    row,
                    num_rows,
                    row_bytes,
                    room,
                    of_pairs,
                    rounded + in_features + 4 * group,
                    4 * num_groups,
                    sums,
                )
        for row in range(num_rows):
            for column in range(0, BLOCK, LANES):
                total = simd.load_f32(sums, row * BLOCK + column)
                simd.store_bf16(out, row * out_features + block * BLOCK + column, total)

    return multiply


@numba.njit(error_model="numpy")
def round_rows(x: int, rounded: int, num_rows: int, in_features: int, group_size: int) -> None:
    """Rows to integers of eight bits. Behind a row's lie the steps of its groups, and then the sums
    of their integers, float32. When it returns, all threads have rounded theirs."""
    num_groups = in_features // group_size
    start, end = share(num_rows)
    for row in range(start, end):
        of_row = rounded + row * (in_features + 8 * num_groups)
        for group in range(num_groups):
            values = x + 2 * (row * in_features + group * group_size)
            peak = simd.spread(numba.float32(0))
            for i in range(0, group_size, LANES):
                peak = integers.larger_magnitude(peak, simd.load_bf16(values, i))
            step = simd.spread(integers.largest_magnitude(peak)) / simd.spread(numba.float32(127))
            # Of zeros, any does.
            step = integers.larger_magnitude(simd.spread(numba.float32(1e-30)), step)
            total = simd.spread(numba.float32(0))
            for i in range(0, group_size, LANES):
                integer = simd.nearest(simd.load_bf16(values, i) / step)
                integers.store_int8(of_row + group * group_size, i, integer)
                total = total + integer
            simd.store_float(of_row + in_features, group, integers.largest_magnitude(step))
            simd.store_float(of_row + in_features, num_groups + group, simd.total(total))
    barrier()


@numba.njit
def _clear(sums: int, num_rows: int) -> None:
    for place in range(0, num_rows * BLOCK, LANES):
        simd.store_f32(sums, place, simd.spread(numba.float32(0)))


@intrinsic
def _unpack(
    typing_context: Any, packed: types.Integer, pairs: types.Integer, codes: types.Integer
) -> Any:
    """A group's codes to a byte each, `[8, 64, 4]`: four inputs of an output side by side.

    Args:
        pairs: address of the group's scales, of which those of a later one are asked for, too.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        packed, pairs, codes = values
        for line in range(_VECTORS):
            place = _INT(64 * (_VECTORS * _AHEAD + line))
            simd.prefetch(builder, builder.add(pairs, place))
        mask, four = (
            ir.Constant(integers.QUADS, [value] * integers.QUADS.count) for value in (15, 4)
        )
        for quad in range(GROUP // 4):
            pair = []  # of two inputs each
            for place in (128 * quad, 128 * quad + 64):
                ahead = builder.add(packed, _INT(_AHEAD * _GROUP_BYTES + place))
                simd.prefetch(builder, ahead)
                pair.append(simd.load(builder, packed, _INT(place), integers.QUADS, 1))
            for part in range(2):
                indices = [32 * i + 16 * part + lane for lane in range(LANES) for i in range(4)]
                of_indices = ir.VectorType(ir.IntType(32), len(indices))
                both = builder.shuffle_vector(*pair, of_indices(indices))
                halves = builder.and_(both, mask), builder.lshr(both, four)
                for half, of_half in enumerate(halves):
                    place = 256 * quad + 128 * half + 64 * part
                    simd.store(builder, of_half, codes, _INT(place), 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _add_int8(
    typing_context: Any,
    tile_rows: types.IntegerLiteral,
    inputs: types.Integer,
    row: types.Integer,
    num_rows: types.Integer,
    row_bytes: types.Integer,
    codes: types.Integer,
    num_quads: types.Integer,
    sums: types.Integer,
) -> Any:
    """To int32 sums `[num_rows, 64]`, of the rows from `row` on, a chunk's products, for which 128
    is added to each code."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, inputs, row, num_rows, row_bytes, codes, num_quads, sums = values
        flip = ir.Constant(I32.of_llvm, [-0x7F7F7F80] * LANES)

        def columns(of_quad: Any) -> list[Any]:
            for vector in range(_VECTORS):
                ahead = builder.add(of_quad, _INT(_CHUNK * BLOCK + 64 * vector))
                simd.prefetch(builder, ahead)
            return [builder.xor(column, flip) for column in _vectors(builder, of_quad, I32)]

        rows = _rows(builder, tile_rows.literal_value, row, num_rows, row_bytes)
        products = _dots(context, builder, rows, inputs, codes, num_quads, columns)
        of_sums = builder.add(sums, builder.mul(row, _INT(4 * BLOCK)))
        for index, of_row in enumerate(products):
            before = _vectors(builder, of_sums, I32, index)
            after = [builder.add(*pair) for pair in zip(before, of_row, strict=True)]
            _store(builder, after, of_sums, index)
        return context.get_dummy_value()

    return types.void(tile_rows, *(7 * [types.int64])), generate


@intrinsic(prefer_literal=True)
def _add_int4(
    typing_context: Any,
    tile_rows: types.IntegerLiteral,
    inputs: types.Integer,
    row: types.Integer,
    num_rows: types.Integer,
    row_bytes: types.Integer,
    codes: types.Integer,
    pairs: types.Integer,
    steps: types.Integer,
    to_totals: types.Integer,
    sums: types.Integer,
) -> Any:
    """To float32 sums `[num_rows, 64]`, of the rows from `row` on, a group's products.

    Args:
        steps: address of the first row's step of the group, and
        to_totals: how far behind it the sum of its integers is.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, inputs, row, num_rows, row_bytes, codes, pairs, steps, to_totals, sums = values

        def fma(a: Any, b: Any, c: Any) -> Any:
            return simd.call(builder, "llvm.fma.v16f32", F32.of_llvm, [a, b, c])

        def columns(of_quad: Any) -> list[Any]:
            return _vectors(builder, of_quad, I32)

        rows = _rows(builder, tile_rows.literal_value, row, num_rows, row_bytes)
        products = _dots(context, builder, rows, inputs, codes, _INT(GROUP // 4), columns)
        eight = ir.Constant(F32.of_llvm, [-8.0] * LANES)
        factors = []
        for pair in _vectors(builder, pairs, I32):
            scale = simd.low_bf16(builder, pair)
            factors.append((scale, fma(eight, scale, simd.high_bf16(builder, pair))))
        of_sums = builder.add(sums, builder.mul(row, _INT(4 * BLOCK)))
        for index, (of_row, offset) in enumerate(zip(products, rows, strict=True)):
            of_step = builder.add(steps, offset)
            step = simd.broadcast(builder, of_step, F32.of_llvm)
            total = simd.broadcast(builder, builder.add(of_step, to_totals), F32.of_llvm)
            total = builder.fmul(step, total)
            before = _vectors(builder, of_sums, F32, index)
            after = [
                fma(
                    builder.fmul(builder.sitofp(product, F32.of_llvm), scale),
                    step,
                    fma(zero, total, old),
                )
                for product, (scale, zero), old in zip(of_row, factors, before, strict=True)
            ]
            _store(builder, after, of_sums, index)
        return context.get_dummy_value()

    return types.void(tile_rows, *(9 * [types.int64])), generate


def _rows(builder: Any, count: int, row: Any, num_rows: Any, row_bytes: Any) -> list[Any]:
    """How far from the first row the rows from `row` on are; behind the last, it again."""
    last = builder.sub(num_rows, _INT(1))
    offsets = []
    for index in range(count):
        place = builder.add(row, _INT(index))
        place = builder.select(builder.icmp_signed("<", place, last), place, last)
        offsets.append(builder.mul(place, row_bytes))
    return offsets


def _vectors(builder: Any, address: Any, kind: simd.Vector, row: int = 0) -> list[Any]:
    """Of 64 outputs, 32 bits each."""
    return [
        simd.load(builder, address, _INT(row * BLOCK + LANES * vector), kind.of_llvm, 4)
        for vector in range(_VECTORS)
    ]


def _store(builder: Any, vectors: list[Any], address: Any, row: int) -> None:
    for vector, value in enumerate(vectors):
        simd.store(builder, value, address, _INT(row * BLOCK + LANES * vector), 4)


def _dots(
    context: Any,
    builder: Any,
    rows: list[Any],
    inputs: Any,
    codes: Any,
    num_quads: Any,
    columns: Columns,
) -> list[list[Any]]:
    """Vectors of int32, for each row those of 64 outputs: its integers times codes, summed.

    Args:
        rows: offsets of their integers from `inputs`.
        codes: address of `[num_quads, 64, 4]`, from which
        columns: loads a quad's vectors, as uint8.
    """
    entry, body = builder.block, builder.append_basic_block("quads")
    builder.branch(body)
    builder.position_at_end(body)
    quad = builder.phi(_INT)
    before = [[builder.phi(I32.of_llvm) for _ in range(_VECTORS)] for _ in rows]
    of_quad = columns(builder.add(codes, builder.mul(quad, _INT(4 * BLOCK))))
    four = builder.add(inputs, builder.mul(quad, _INT(4)))
    after = []
    for offset, of_row in zip(rows, before, strict=True):
        of_row_quad = simd.broadcast(builder, builder.add(four, offset), I32.of_llvm)
        after.append(
            [
                integers.dot_int8(context, builder, old, column, of_row_quad)
                for old, column in zip(of_row, of_quad, strict=True)
            ]
        )
    following = builder.add(quad, _INT(1))
    quad.add_incoming(_INT(0), entry)
    quad.add_incoming(following, body)
    for old, new in zip(chain(*before), chain(*after), strict=True):
        old.add_incoming(ir.Constant(I32.of_llvm, None), entry)
        old.add_incoming(new, body)
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed("<", following, num_quads), body, done)
    builder.position_at_end(done)
    return after
