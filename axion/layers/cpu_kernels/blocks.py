"""Products with weights of blocks, as GGUF files have them: integers of a few bits, of which
neighbouring inputs share a scale.

Inputs are rounded to eight bits in groups of 32, each by its largest, and multiplied as integers:
as llama.cpp does. The weight stays at its bits: 16 columns of the result lie beside each other, one
in each lane, so that memory is read in sequence, and what is unpacked once is multiplied by all
rows of a tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from axion.layers.cpu_kernels import simd
from axion.layers.cpu_kernels.layouts import GROUP, LAYOUTS
from axion.layers.cpu_kernels.parallel import ParallelKernel, barrier, parallel, share
from axion.layers.cpu_kernels.simd import F32, I32, LANES

MAX_ROWS = 64
"""Rows that are multiplied at once: rounded, they stay in the processor's caches."""

import os
_AHEAD = int(os.environ.get("AHEAD","2048"))
_TILES = (1, 4, 8)
# Of 32 rounded inputs: the codes, their scale, and what is known of their sums.
_CODES, _STEP, _SUMS, _RECORD = 0, 32, 36, 48


def product(x: Tensor, codes: Tensor, scales: Tensor, name: str) -> Tensor:
    """`[num_rows, in_features]` to `[num_rows, out_features]`, both contiguous bfloat16.

    Args:
        codes: `[out_features / 16, in_features / 32, group_bytes / 4, 16]`, int32.
        scales: `[out_features / 16, in_features / block_size, block_bytes * 16]`, uint8.
        name: of the layout.
    """
    num_rows, in_features = x.shape
    out_features = LANES * len(codes)
    tile = next(tile for tile in _TILES if tile >= num_rows or tile == _TILES[-1])
    num_padded = -(-num_rows // tile) * tile
    out = x.new_empty(num_padded, out_features)
    rounded = torch.empty(
        min(num_padded, MAX_ROWS) * in_features // GROUP * _RECORD, dtype=torch.uint8
    )
    multiply = _kernel(name, tile)
    for row in range(0, num_rows, MAX_ROWS):
        multiply(
            x.data_ptr() + 2 * row * in_features,
            rounded.data_ptr(),
            codes.data_ptr(),
            scales.data_ptr(),
            out.data_ptr() + 2 * row * out_features,
            min(num_rows - row, MAX_ROWS),
            in_features,
            out_features,
        )
    return out if num_padded == num_rows else out[:num_rows]


@cache
def _kernel(name: str, tile_rows: int) -> ParallelKernel:
    layout = LAYOUTS[name]
    group_bytes, block_bytes = LANES * layout.group_bytes, LANES * layout.block_bytes
    block_groups = layout.block_size // GROUP
    zero, has_offset = layout.zero, layout.has_offset
    is_halved = layout.group_size < GROUP

    @parallel(integers=8)
    def multiply(arguments: Any) -> None:
        x, rounded, codes, scales, out, rows, in_features, out_features = arguments[0]
        num_groups = in_features // GROUP
        num_tiles = (rows + tile_rows - 1) // tile_rows
        start, end = share(num_tiles * tile_rows * num_groups)
        for place in range(start, end):
            tile = place // (tile_rows * num_groups)
            group = place // tile_rows % num_groups
            row = min(tile * tile_rows + place % tile_rows, rows - 1)
            _round(
                x + 2 * (row * in_features + group * GROUP),
                rounded + place * _RECORD,
                zero,
                has_offset,
                is_halved,
            )
        barrier()
        num_blocks = num_groups // block_groups
        start, end = share(out_features // LANES)
        for column in range(start, end):
            for tile in range(num_tiles):
                sums = _zeros(tile_rows)
                inputs = rounded + tile * num_groups * tile_rows * _RECORD
                of_codes = codes + column * num_groups * group_bytes
                of_scales = scales + column * num_blocks * block_bytes
                for _ in range(num_blocks):
                    for group in range(block_groups):
                        sums = _add_group(name, tile_rows, sums, inputs, of_codes, of_scales, group)
                        inputs += tile_rows * _RECORD
                        of_codes += group_bytes
                    of_scales += block_bytes
                _store(
                    tile_rows,
                    sums,
                    out + 2 * (tile * tile_rows * out_features + column * LANES),
                    out_features,
                )

    return multiply


@numba.njit
def _round(x: int, record: int, zero: int, has_offset: bool, is_halved: bool) -> None:
    """32 inputs to what `_add_group` reads of them."""
    a, b = simd.load_bf16(x, 0), simd.load_bf16(x, LANES)
    peak = simd.larger_magnitude(simd.spread(numba.float32(0.0)), a)
    largest = simd.largest(simd.larger_magnitude(peak, b))
    # Of vectors, whose division by 0 is no error.
    factor = simd.spread(numba.float32(127.0)) / simd.spread(largest)
    a, b = simd.rounded(a * factor), simd.rounded(b * factor)
    simd.store_int8(record, 0, a)
    simd.store_int8(record, LANES, b)
    simd.store_float(record + _STEP, 0, largest * numba.float32(1 / 127))
    first, second = simd.total(a), simd.total(b)
    if not is_halved:
        first += second
    if has_offset:
        simd.store_float(record + _SUMS, 0, first)
        simd.store_float(record + _SUMS, 1, second)
    else:
        simd.store_int(record + _SUMS, 0, numba.int32(-zero * numba.int32(first)))
        simd.store_int(record + _SUMS, 1, numba.int32(-zero * numba.int32(second)))


@intrinsic(prefer_literal=True)
def _zeros(typing_context: Any, count: types.IntegerLiteral) -> Any:
    result = types.UniTuple(F32, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        zero = ir.Constant(F32.of_llvm, None)
        return context.make_tuple(builder, result, [zero] * result.count)

    return result(count), generate


@intrinsic(prefer_literal=True)
def _store(typing_context: Any, tile_rows: Any, sums: Any, out: Any, out_features: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, sums, out, out_features = values
        for row, vector in enumerate(cgutils.unpack_tuple(builder, sums)):
            index = builder.mul(out_features, ir.Constant(out_features.type, row))
            simd.store(builder, builder.fptrunc(vector, simd.BF16), out, index, 2)
        return context.get_dummy_value()

    return types.void(tile_rows, sums, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def _add_group(
    typing_context: Any,
    name: types.StringLiteral,
    tile_rows: types.IntegerLiteral,
    sums: types.UniTuple,
    inputs: types.Integer,
    codes: types.Integer,
    scales: types.Integer,
    group: types.Integer,
) -> Any:
    """The sums of `tile_rows` rows and 16 columns, and the products of 32 inputs more.

    Args:
        inputs: address of the records of these inputs, one for each row.
        codes: address of these inputs' codes.
        scales: address of the block's scales.
        group: which 32 inputs of the block.
    """
    layout = LAYOUTS[name.literal_value]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, _, sums, inputs, codes, scales, group = values
        byte = ir.Constant(inputs.type, 1)

        def number(value: int) -> Any:
            return ir.Constant(inputs.type, value)

        def halves(first: int) -> list[Any]:
            """Scales or offsets of the group, of which it has one or two."""
            parts = GROUP // layout.group_size
            whole = simd.load_f16(builder, scales, number(LANES * first))
            if layout.block_size == GROUP:
                return [whole]
            found = []
            for part in range(parts):
                index = builder.add(builder.mul(group, number(parts)), number(part))
                before = LANES * (2 * (1 + layout.has_offset))
                if first:
                    before += LANES * layout.block_size // layout.group_size
                place = builder.add(builder.mul(index, number(LANES)), number(before))
                found.append(builder.fmul(whole, simd.load_i8(builder, scales, place)))
            return found

        scale = halves(0)
        offset = halves(1) if layout.has_offset else []
        quads = _unpack(builder, codes, layout.planes)
        size = len(quads) // len(scale)
        added = []
        for row, total in enumerate(cgutils.unpack_tuple(builder, sums)):
            record = builder.add(inputs, number(row * _RECORD))

            def at(place: int, vector: Any) -> Any:
                return simd.broadcast(builder, builder.add(record, number(place)), vector)

            product = None
            for part, of_part in enumerate(scale):
                place = _SUMS + 4 * part
                if layout.zero:
                    dot = at(place, I32.of_llvm)
                else:
                    dot = ir.Constant(I32.of_llvm, None)
                for quad in range(part * size, (part + 1) * size):
                    dot = simd.dot_int8(
                        context, builder, dot, quads[quad], at(_CODES + 4 * quad, I32.of_llvm)
                    )
                dot = builder.sitofp(dot, F32.of_llvm)
                if product is None:
                    product = builder.fmul(dot, of_part)
                else:
                    product = _fma(builder, dot, of_part, product)
                if offset:
                    product = _fma(builder, offset[part], at(place, F32.of_llvm), product)
            added.append(_fma(builder, product, at(_STEP, F32.of_llvm), total))
        return context.make_tuple(builder, signature.return_type, added)

    return sums(name, tile_rows, sums, *(4 * [types.int64])), generate


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return simd.call(builder, "llvm.fma.v16f32", F32.of_llvm, [a, b, c])


def _unpack(builder: Any, address: Any, planes: tuple[int, ...]) -> list[Any]:
    """The codes of 32 inputs: eight vectors of four in a lane."""

    def constant(value: int) -> Any:
        return ir.Constant(I32.of_llvm, [value] * LANES)

    quads: list[Any] = [None] * (GROUP // 4)
    line, done = 0, 0
    for bits in planes:
        mask = 0x01010101 * (2**bits - 1) << done
        mask -= 2**32 if mask >= 2**31 else 0
        num_vectors = bits * GROUP // 8 // 4
        for index in range(GROUP // 4):
            at, shift = index % num_vectors, index // num_vectors * bits - done
            place = ir.Constant(address.type, LANES * (line + at))
            vector = simd.load(builder, address, place, I32.of_llvm, 4)
            if at == index:
                simd.prefetch(builder, address, ir.Constant(address.type, 64 * (line + at) + _AHEAD))
            if shift > 0:
                vector = builder.lshr(vector, constant(shift))
            elif shift < 0:
                vector = builder.shl(vector, constant(-shift))
            if bits < 8:
                vector = builder.and_(vector, constant(mask))
            quads[index] = vector if done == 0 else builder.or_(quads[index], vector)
        line += num_vectors
        done += bits
    return quads
