"""The product of `axion.layers.cpu_kernels.blocks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from axion.layers.cpu_kernels import BLOCK, LANES
from axion.layers.cpu_kernels.blocks import RECORD
from axion.layers.cpu_kernels.compiled import integers, simd
from axion.layers.cpu_kernels.compiled.simd import F32, I32
from axion.layers.cpu_kernels.compiled.threads import barrier, share
from axion.layers.cpu_kernels.layouts import GROUP, LAYOUTS, Layout

# Where a record has what else it has than codes.
_SCALE, _SUMS = 32, 36
_QUADS = GROUP // 4
_TINY = 1e-30  # less is 0
# Bytes of codes that are on their way from memory while these are multiplied: what processors fetch
# ahead by themselves is too little where several rows are.
_AHEAD = 8192


def multiply(name: str, tile_rows: int) -> Callable[[Any], None]:
    """By a weight in the layout of this name, so many rows at once."""
    layout = LAYOUTS[name]
    zero, has_offset, is_halved = layout.bias, layout.has_offset, _num_scales(layout) == 2
    multiply_tile = _tile_product(name, tile_rows)

    def compute(arguments: Any) -> None:
        x, rounded, codes, scales, out, rows, in_features, out_features = arguments[0]
        num_groups = in_features // GROUP
        num_tiles = (rows + tile_rows - 1) // tile_rows
        # Of each tile the records of a group lie beside each other. The last row fills its tile.
        start, end = share(num_tiles * tile_rows * num_groups)
        for place in range(start, end):
            tile, group = place // (tile_rows * num_groups), place // tile_rows % num_groups
            row = min(tile * tile_rows + place % tile_rows, rows - 1)
            inputs = x + 2 * (row * in_features + group * GROUP)
            _round(inputs, rounded + place * RECORD, zero, has_offset, is_halved)
        barrier()
        start, end = share(out_features // LANES)
        for column in range(start, end):
            for tile in range(num_tiles):
                multiply_tile(
                    rounded + tile * num_groups * tile_rows * RECORD,
                    RECORD,
                    tile_rows * RECORD,
                    rows - tile * tile_rows,
                    codes,
                    scales,
                    out + 2 * tile * tile_rows * out_features,
                    in_features,
                    out_features,
                    column,
                )

    return compute


def block_product(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """For `grouped`: what rounds rows, and what multiplies some by 64 columns. A row's records lie
    beside each other, and those behind the last may be read."""
    layout = LAYOUTS[name]
    zero, has_offset, is_halved = layout.bias, layout.has_offset, _num_scales(layout) == 2
    one, four, eight = (_tile_product(name, tile_rows) for tile_rows in (1, 4, 8))

    @numba.njit(error_model="numpy")
    def round_rows(x: int, rounded: int, num_rows: int, in_features: int) -> None:
        start, end = share(num_rows * in_features // GROUP)
        for place in range(start, end):
            inputs, record = x + 2 * place * GROUP, rounded + place * RECORD
            _round(inputs, record, zero, has_offset, is_halved)
        barrier()

    @numba.njit(error_model="numpy")
    def multiply(
        room: int,
        rounded: int,
        num_rows: int,
        codes: int,
        scales: int,
        out: int,
        in_features: int,
        out_features: int,
        block: int,
    ) -> None:
        row_bytes = in_features // GROUP * RECORD
        others = codes, scales, out, in_features, out_features
        last = min((block + 1) * (BLOCK // LANES), out_features // LANES)
        for column in range(block * (BLOCK // LANES), last):
            if num_rows == 1:
                one(rounded, row_bytes, RECORD, 1, *others, column)
            elif num_rows <= 4:
                four(rounded, row_bytes, RECORD, num_rows, *others, column)
            else:
                for row in range(0, num_rows, 8):
                    eight(
                        rounded + row * row_bytes,
                        row_bytes,
                        RECORD,
                        num_rows - row,
                        codes,
                        scales,
                        out + 2 * row * out_features,
                        in_features,
                        out_features,
                        column,
                    )

    return round_rows, multiply


def _tile_product(name: str, tile_rows: int) -> Callable[..., None]:
    """Of so many rows, of which some are stored, with 16 columns.

    It takes the address of the first row's first record, and how far from it the next row's is, and
    the next group's.
    """
    layout = LAYOUTS[name]
    group_bytes, span_bytes = LANES * layout.group_bytes, LANES * layout.span_bytes
    span_groups = layout.span // GROUP

    @numba.njit(error_model="numpy", forceinline=True)
    def multiply(
        records: int,
        row_bytes: int,
        record_bytes: int,
        num_rows: int,
        codes: int,
        scales: int,
        out: int,
        in_features: int,
        out_features: int,
        column: int,
    ) -> None:
        num_groups = in_features // GROUP
        num_spans = num_groups // span_groups
        sums = _zeros(tile_rows)
        of_codes = codes + column * num_groups * group_bytes
        of_scales = scales + column * num_spans * span_bytes
        for _ in range(num_spans):
            for group in range(span_groups):
                sums = _add_group(name, sums, records, row_bytes, of_codes, of_scales, group)
                records += record_bytes
                of_codes += group_bytes
            of_scales += span_bytes
        _store(sums, out + 2 * column * LANES, out_features, num_rows)

    return multiply


def _num_scales(layout: Layout) -> int:
    """Of 32 inputs."""
    return max(1, GROUP // (layout.group_size or layout.block_size))


@numba.njit(error_model="numpy")
def _round(x: int, record: int, zero: int, has_offset: bool, is_halved: bool) -> None:
    """32 inputs to what `_add_group` reads of them: codes, their scale, and their sum, or those of
    both halves; as float32 where offsets are multiplied by it, else times what is taken from codes
    of the weight."""
    a, b = simd.load_bf16(x, 0), simd.load_bf16(x, LANES)
    peak = integers.larger_magnitude(simd.spread(numba.float32(0.0)), a)
    largest = integers.largest_magnitude(integers.larger_magnitude(peak, b))
    # What is no number, or infinite, makes the scale so, and all results with it.
    steps = numba.float32(127.0) / largest if largest > _TINY else numba.float32(0.0)
    a, b = simd.nearest(a * simd.spread(steps)), simd.nearest(b * simd.spread(steps))
    integers.store_int8(record, 0, a)
    integers.store_int8(record, LANES, b)
    simd.store_float(record + _SCALE, 0, largest * numba.float32(1 / 127))
    first, second = simd.total(a), simd.total(b)
    if not is_halved:
        first += second
    if has_offset:
        simd.store_float(record + _SUMS, 0, first)
        simd.store_float(record + _SUMS, 1, second)
    else:
        integers.store_int32(record + _SUMS, 0, numba.int32(-zero * numba.int32(first)))
        integers.store_int32(record + _SUMS, 1, numba.int32(-zero * numba.int32(second)))


@intrinsic(prefer_literal=True)
def _zeros(typing_context: Any, count: types.IntegerLiteral) -> Any:
    """Sums of so many rows and 16 columns."""
    sums = types.UniTuple(F32, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return context.make_tuple(builder, sums, [ir.Constant(F32.of_llvm, None)] * sums.count)

    return sums(count), generate


@intrinsic
def _store(typing_context: Any, sums: Any, out: Any, out_features: Any, num_rows: Any) -> Any:
    """So many rows at most, from an address on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        sums, out, out_features, num_rows = values
        for row, vector in enumerate(cgutils.unpack_tuple(builder, sums)):
            number = ir.Constant(out_features.type, row)
            with builder.if_then(builder.icmp_signed("<", number, num_rows)):
                index = builder.mul(out_features, number)
                simd.store(builder, builder.fptrunc(vector, simd.BF16), out, index, 2)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _add_group(
    typing_context: Any,
    name: types.StringLiteral,
    sums: types.UniTuple,
    records: types.Integer,
    row_bytes: types.Integer,
    codes: types.Integer,
    scales: types.Integer,
    group: types.Integer,
) -> Any:
    """The sums, and the products of 32 inputs more.

    Args:
        records: address of the first row's inputs.
        row_bytes: from a row's to the next one's.
        codes: address of their codes.
        scales: address of the span's scales.
        group: which 32 inputs of the span.
    """
    layout = LAYOUTS[name.literal_value]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, sums, records, row_bytes, codes, scales, group = values
        of_scales, of_offsets = _scales(builder, layout, scales, group)
        quads = _unpack(builder, layout.planes, codes)
        if layout.numbers:
            table = tuple(number + layout.bias for number in layout.numbers)
            quads = [integers.look_up(context, builder, table, quad) for quad in quads]
        added = []
        for row, total in enumerate(cgutils.unpack_tuple(builder, sums)):
            of_row = builder.add(records, builder.mul(row_bytes, ir.Constant(records.type, row)))

            def spread(place: int, kind: ir.VectorType, of_row: Any = of_row) -> Any:
                at = ir.Constant(records.type, place)
                return simd.broadcast(builder, builder.add(of_row, at), kind)

            product = None
            size = _QUADS // len(of_scales)
            for half, scale in enumerate(of_scales):
                at = _SUMS + 4 * half
                zero = ir.Constant(I32.of_llvm, None)
                dot = spread(at, I32.of_llvm) if layout.bias else zero
                for quad in range(half * size, (half + 1) * size):
                    inputs = spread(4 * quad, I32.of_llvm)
                    dot = integers.dot_int8(context, builder, dot, quads[quad], inputs)
                dot = builder.sitofp(dot, F32.of_llvm)
                if product is None:
                    product = builder.fmul(dot, scale)
                else:
                    product = _fma(builder, dot, scale, product)
                if layout.has_offset:
                    product = _fma(builder, of_offsets[half], spread(at, F32.of_llvm), product)
            added.append(_fma(builder, product, spread(_SCALE, F32.of_llvm), total))
        return context.make_tuple(builder, signature.return_type, added)

    return sums(name, sums, *(5 * [types.int64])), generate


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return simd.call(builder, "llvm.fma.v16f32", F32.of_llvm, [a, b, c])


def _scales(builder: Any, layout: Layout, scales: Any, group: Any) -> tuple[list[Any], list[Any]]:
    """The scales of a group of 32 inputs, one or two vectors, and its offsets."""

    def number(value: int) -> Any:
        return ir.Constant(scales.type, value)

    count = _num_scales(layout)
    first_factor = 2 * layout.num_halves * (1 + layout.has_offset)
    found: tuple[list[Any], list[Any]] = ([], [])
    for kind, vectors in enumerate(found[: 1 + layout.has_offset]):
        for half in range(count):
            place = layout.num_halves * kind + half % layout.num_halves
            load = integers.load_bf16_as_f32 if layout.is_bfloat16 else integers.load_f16
            vector = load(builder, scales, number(LANES * place))
            if layout.unit != 1:
                vector = builder.fmul(vector, ir.Constant(F32.of_llvm, [layout.unit] * LANES))
            if layout.group_size:
                of_group = builder.mul(group, number(LANES * count))
                place = first_factor + layout.num_factors * kind + half
                place = builder.add(of_group, number(LANES * place))
                vector = builder.fmul(vector, integers.load_int8(builder, scales, place))
            vectors.append(vector)
    return found


def _unpack(builder: Any, planes: tuple[int, ...], codes: Any) -> list[Any]:
    """The codes of 32 inputs: eight vectors, of four neighbouring ones in a lane."""

    def constant(value: int) -> Any:
        return ir.Constant(I32.of_llvm, [value] * LANES)

    def number(value: int) -> Any:
        return ir.Constant(codes.type, value)

    quads: list[Any] = []
    first_line = first_bit = 0
    for bits in planes:
        lines = []
        for line in range(first_line, first_line + bits):
            lines.append(simd.load(builder, codes, number(LANES * line), I32.of_llvm, 4))
            simd.prefetch(builder, builder.add(codes, number(4 * LANES * line + _AHEAD)))
        mask = 0x01010101 * (2**bits - 1 << first_bit)
        parts = []
        for quad in range(_QUADS):
            part, shift = lines[quad % bits], quad // bits * bits - first_bit
            if shift > 0:
                part = builder.lshr(part, constant(shift))
            elif shift < 0:
                part = builder.shl(part, constant(-shift))
            parts.append(builder.and_(part, constant(mask)))
        quads = [builder.or_(*pair) for pair in zip(quads, parts, strict=True)] if quads else parts
        first_line += bits
        first_bit += bits
    return quads
