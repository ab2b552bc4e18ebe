"""Products of few rows with a packed weight (see `axion.layers.cpu_kernels.linear`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from axion.layers.cpu_kernels import BLOCK, MAX_ROWS
from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import F32, I32, LANES
from axion.layers.cpu_kernels.compiled.threads import share

_VECTORS = BLOCK // LANES
_BYTES = 4 * BLOCK  # of a pair of inputs, in a block
ROOM = MAX_ROWS * _BYTES
"""Bytes of the sums of a block's product."""
# Pairs of inputs whose weights, 24 KB, stay in the fastest cache while all rows are multiplied.
_PIECE = 96
# Rows of a tile: with 6 x 4 sums, 4 vectors of weights and 1 of inputs, 29 of 32 registers.
_TILE = 6


def multiply() -> Callable[[Any], None]:
    """A block of columns after the other."""
    multiply_block = block_product()

    def compute(arguments: Any) -> None:
        x, weight, out, num_rows, in_features, out_features = arguments[0]
        sums = simd.on_stack(ROOM)
        start, end = share((out_features + BLOCK - 1) // BLOCK)
        for block in range(start, end):
            multiply_block(sums, x, num_rows, weight, out, in_features, out_features, block)

    return compute


def block_product() -> Callable[..., None]:
    """A block of columns is summed up a piece of its inputs after the other. Rows, at most
    `MAX_ROWS`, are divided into tiles of nearly equal size, and each of a tile's sums stays in a
    register throughout a piece. While a piece is multiplied the next one is fetched from memory.

    Its `sums` are the address of so much `ROOM`.
    """
    add_to_tile = _one_of([_adder(num_rows) for num_rows in range(1, _TILE + 1)])

    @numba.njit(error_model="numpy")
    def multiply_block(
        sums: int,
        x: int,
        num_rows: int,
        weight: int,
        out: int,
        in_features: int,
        out_features: int,
        block: int,
    ) -> None:
        num_pairs = in_features // 2
        num_tiles = (num_rows + _TILE - 1) // _TILE
        for pair in range(0, num_pairs, _PIECE):
            weights = weight + (block * num_pairs + pair) * _BYTES
            for tile in range(num_tiles):
                row = num_rows * tile // num_tiles
                add_to_tile(
                    num_rows * (tile + 1) // num_tiles - row,
                    sums + row * _BYTES,
                    pair == 0,
                    x + 2 * row * in_features + 4 * pair,
                    2 * in_features,
                    weights,
                    min(_PIECE, num_pairs - pair),
                    weights + _PIECE * _BYTES + _PIECE * _BYTES * tile // num_tiles,
                    _BYTES // num_tiles,
                )
        for row in range(num_rows):
            for column in range(0, min(BLOCK, out_features - BLOCK * block), LANES):
                simd.store_first_bf16(
                    out,
                    row * out_features + BLOCK * block + column,
                    simd.load_f32(sums, BLOCK * row + column),
                    out_features - BLOCK * block - column,
                )

    return multiply_block


def _adder(num_rows: int) -> Callable[..., None]:
    """Adds the products of so many rows with a piece to their sums."""
    num_sums = num_rows * _VECTORS

    @numba.njit(error_model="numpy")
    def add(
        sums: int,
        is_first: bool,
        x: int,
        row_bytes: int,
        weights: int,
        num_pairs: int,
        next_weights: int,
        next_bytes: int,
    ) -> None:
        total = _zeros(num_sums) if is_first else _load(num_sums, sums)
        for pair in range(num_pairs):
            _prefetch(next_weights + next_bytes * pair)
            total = _add_products(total, x + 4 * pair, row_bytes, weights + _BYTES * pair)
        _store(total, sums)

    return add


def _one_of(functions: list[Callable[..., None]]) -> Callable[..., None]:
    """A function of which of these is called, counted from 1, and with what."""
    *others, last = functions
    number = len(functions)
    if not others:
        return numba.njit(lambda _, *arguments: last(*arguments))
    other = _one_of(others)

    @numba.njit
    def call(wanted: int, *arguments: Any) -> None:
        if wanted == number:
            last(*arguments)
        else:
            other(wanted, *arguments)

    return call


@intrinsic(prefer_literal=True)
def _zeros(typing_context: Any, count: types.IntegerLiteral) -> Any:
    vectors = types.UniTuple(F32, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(context.get_value_type(vectors), None)

    return vectors(count), generate


@intrinsic(prefer_literal=True)
def _load(typing_context: Any, count: types.IntegerLiteral, address: types.Integer) -> Any:
    vectors = types.UniTuple(F32, count.literal_value)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = [
            simd.load(builder, values[1], _INT(LANES * i), F32.of_llvm, 4)
            for i in range(vectors.count)
        ]
        return context.make_tuple(builder, vectors, loaded)

    return vectors(count, types.int64), generate


@intrinsic
def _store(typing_context: Any, vectors: types.UniTuple, address: types.Integer) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for i, vector in enumerate(cgutils.unpack_tuple(builder, values[0])):
            simd.store(builder, vector, values[1], _INT(LANES * i), 4)
        return context.get_dummy_value()

    return types.void(vectors, types.int64), generate


@intrinsic
def _add_products(
    typing_context: Any,
    sums: types.UniTuple,
    x: types.Integer,
    row_bytes: types.Integer,
    weights: types.Integer,
) -> Any:
    """Of one pair of inputs of each row with a block's weights."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        before, x, row_bytes, weights = values
        columns = [
            simd.load(builder, weights, _INT(LANES * i), I32.of_llvm, 4) for i in range(_VECTORS)
        ]
        after = []
        for i, total in enumerate(cgutils.unpack_tuple(builder, before)):
            row, column = divmod(i, _VECTORS)
            if column == 0:
                of_row = builder.add(x, builder.mul(row_bytes, _INT(row)))
                inputs = simd.broadcast(builder, of_row, I32.of_llvm)
            after.append(simd.dot_bf16(context, builder, total, inputs, columns[column]))
        return context.make_tuple(builder, sums, after)

    return sums(sums, types.int64, types.int64, types.int64), generate


@intrinsic
def _prefetch(typing_context: Any, address: types.Integer) -> Any:
    """A pair's weights in a block; where rows have several tiles, each fetches a part of that, from
    where it likes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for line in range(0, _BYTES, 64):
            simd.prefetch(builder, builder.add(values[0], _INT(line)))
        return context.get_dummy_value()

    return types.void(types.int64), generate


_INT = ir.IntType(64)
