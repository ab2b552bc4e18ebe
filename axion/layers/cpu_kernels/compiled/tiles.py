"""Products and transpositions of tiles that fit in the processor's registers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import BF16, F32, I32, LANES


@intrinsic(prefer_literal=True)
def add_products(
    typing_context: Any,
    num_rows: types.IntegerLiteral,
    num_vectors: types.IntegerLiteral,
    shrinks: types.Integer,
    out: types.Integer,
    a: types.Integer,
    a_row_bytes: types.Integer,
    a_step_bytes: types.Integer,
    b: types.Integer,
    count: types.Integer,
) -> Any:
    """`out[i, j] = out[i, j] * shrink[j] + sum(a[i, k] * b[k, j])` for `k` in `range(count)`.

    Elements of `a` and `b` are pairs of bfloat16, whose products are added up; those of `out` and
    `shrinks` are float32. `b` and `out` have contiguous rows of `num_vectors * LANES`.

    Args:
        shrinks: address of `[num_vectors * LANES]`; literal 0: what `out` holds does not count.
        count: at least 1.
    """
    rows, vectors = num_rows.literal_value, num_vectors.literal_value
    is_new = isinstance(shrinks, types.IntegerLiteral) and shrinks.literal_value == 0
    row_bytes = 4 * LANES * vectors

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        shrinks, out, a, a_row_bytes, a_step_bytes, b, count = values[2:]
        of_int = b.type

        def number(value: int) -> Any:
            return ir.Constant(of_int, value)

        columns = [number(LANES * vector) for vector in range(vectors)]
        places = [builder.add(out, number(row_bytes * row)) for row in range(rows)]
        offsets = [builder.mul(a_row_bytes, number(row)) for row in range(rows)]
        old = [[ir.Constant(F32.of_llvm, None)] * vectors] * rows
        if not is_new:
            factors = [simd.load(builder, shrinks, i, F32.of_llvm, 4) for i in columns]
            old = [
                [
                    builder.fmul(simd.load(builder, place, i, F32.of_llvm, 4), factor)
                    for i, factor in zip(columns, factors, strict=True)
                ]
                for place in places
            ]
        end = builder.add(b, builder.mul(count, number(row_bytes)))

        entry, body = builder.block, builder.append_basic_block("products")
        builder.branch(body)
        builder.position_at_end(body)
        of_a, of_b = builder.phi(of_int), builder.phi(of_int)
        of_a.add_incoming(a, entry)
        of_b.add_incoming(b, entry)
        before = [[builder.phi(F32.of_llvm) for _ in columns] for _ in places]
        lanes = [simd.load(builder, of_b, i, I32.of_llvm, 4) for i in columns]
        after = []
        for offset, sums in zip(offsets, before, strict=True):
            pair = simd.broadcast(builder, builder.add(of_a, offset), I32.of_llvm)
            after.append(
                [
                    simd.dot_bf16(context, builder, sum_, pair, pairs)
                    for sum_, pairs in zip(sums, lanes, strict=True)
                ]
            )
        for phi, first, next_ in zip(chain(*before), chain(*old), chain(*after), strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(next_, body)
        next_a = builder.add(of_a, a_step_bytes)
        next_b = builder.add(of_b, number(row_bytes))
        of_a.add_incoming(next_a, body)
        of_b.add_incoming(next_b, body)
        done = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_unsigned("<", next_b, end), body, done)
        builder.position_at_end(done)
        for place, sums in zip(places, after, strict=True):
            for i, sum_ in zip(columns, sums, strict=True):
                simd.store(builder, sum_, place, i, 4)
        return context.get_dummy_value()

    of_shrinks = shrinks if is_new else types.int64
    return types.void(num_rows, num_vectors, of_shrinks, *(6 * [types.int64])), generate


@intrinsic(prefer_literal=True)
def gather_columns(
    typing_context: Any,
    num_words: types.IntegerLiteral,
    out: types.Integer,
    out_row_bytes: types.Integer,
    rows: types.Integer,
    offset: types.Integer,
) -> Any:
    """So many words, at most `LANES`, of each of `LANES` rows, transposed: a row of `out` for each.

    Args:
        rows: where the rows' addresses are.
        offset: of the first word in a row, in bytes.
    """
    width = num_words.literal_value
    words = ir.VectorType(ir.IntType(32), width)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, out_row_bytes, rows, offset = values[1:]
        first = ir.Constant(out.type, 0)
        nothing, mask = (
            ir.Constant(words, ir.Undefined),
            _indices(lane % width for lane in range(LANES)),
        )
        vectors = []
        for row in _addresses(builder, rows):
            loaded = simd.load(builder, builder.add(row, offset), first, words, 2)
            vectors.append(builder.shuffle_vector(loaded, nothing, mask))
        for i, vector in enumerate(_transposed(builder, vectors)[:width]):
            place = builder.add(out, builder.mul(out_row_bytes, ir.Constant(out.type, i)))
            simd.store(builder, vector, place, first, 4)
        return context.get_dummy_value()

    return types.void(num_words, *(4 * [types.int64])), generate


@intrinsic
def scatter_columns(
    typing_context: Any,
    rows: types.Integer,
    offset: types.Integer,
    x: types.Integer,
    x_row_bytes: types.Integer,
    factors: types.Integer,
) -> Any:
    """`LANES` rows of `x`, float32, transposed: a lane times its factor goes to its row, bfloat16.

    Args:
        rows: where the rows' addresses are.
        offset: in a row of what comes of the first row of `x`, in bytes.
        factors: address of `[LANES]`.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        rows, offset, x, x_row_bytes, factors = values
        first = ir.Constant(x.type, 0)
        factor = simd.load(builder, factors, first, F32.of_llvm, 4)
        vectors = []
        for i in range(LANES):
            row = builder.add(x, builder.mul(x_row_bytes, ir.Constant(x.type, i)))
            vectors.append(builder.fmul(simd.load(builder, row, first, F32.of_llvm, 4), factor))
        for row, vector in zip(
            _addresses(builder, rows), _transposed(builder, vectors), strict=True
        ):
            place = builder.add(row, offset)
            simd.store(builder, builder.fptrunc(vector, BF16), place, first, 2)
        return context.get_dummy_value()

    return types.void(*(5 * [types.int64])), generate


def _indices(lanes: Iterable[int]) -> Any:
    return ir.Constant(I32.of_llvm, list(lanes))


def _addresses(builder: Any, place: Any) -> list[Any]:
    vector = ir.VectorType(place.type, LANES)
    loaded = simd.load(builder, place, ir.Constant(place.type, 0), vector, 8)
    return [builder.extract_element(loaded, ir.Constant(ir.IntType(32), i)) for i in range(LANES)]


def _transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """`LANES` vectors, of which lane i becomes vector i: blocks of 1, 2, 4 ... lanes change places
    with those across the diagonal."""
    size = 1
    while size < LANES:
        masks = []
        for half in (0, size):
            lanes = []
            for start in range(0, LANES, 2 * size):
                lanes += range(start + half, start + half + size)
                lanes += range(LANES + start + half, LANES + start + half + size)
            masks.append(_indices(lanes))
        for i in range(LANES):
            if not i & size:
                both = vectors[i], vectors[i + size]
                for j, mask in zip((i, i + size), masks, strict=True):
                    vectors[j] = builder.shuffle_vector(*both, mask)
        size *= 2
    return vectors
