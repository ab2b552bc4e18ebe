"""Integers of eight bits and fewer: codes of weights, and inputs that are rounded to such."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.compiled.simd import (
    BF16,
    F32,
    I32,
    call,
    has,
    load,
    operation,
    pointer_to,
    store,
)

_INT = ir.IntType(32)
_HALF = ir.VectorType(_INT, LANES // 2)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
QUADS = ir.VectorType(ir.IntType(8), 4 * LANES)
_WORDS = ir.VectorType(ir.IntType(16), 2 * LANES)


def dot_int8(context: Any, builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """`sums` and in each lane the product of four uint8 and four int8, exactly."""
    if has(context, "avx512vnni"):
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", I32.of_llvm, [sums, a, b])
    if has(context, "avxvnni"):
        halves = [
            call(builder, "llvm.x86.avx512.vpdpbusd.256", _HALF, [half(x) for x in (sums, a, b)])
            for half in (partial(_lanes, builder, first) for first in (0, _HALF.count))
        ]
        return builder.shuffle_vector(*halves, ir.Constant(I32.of_llvm, list(range(LANES))))
    # Every second byte as 16 bits, of which there are instructions for pairs.
    eight = ir.Constant(_WORDS, [8] * 2 * LANES)
    a, b = (builder.bitcast(x, _WORDS) for x in (a, b))
    odd = builder.lshr(a, eight), builder.ashr(b, eight)
    mask = ir.Constant(_WORDS, [255] * 2 * LANES)
    even = builder.and_(a, mask), builder.ashr(builder.shl(b, eight), eight)
    for pair in (even, odd):
        for place in range(2):
            indices = ir.Constant(I32.of_llvm, list(range(place, 2 * LANES, 2)))
            factors = (
                builder.sext(
                    builder.shuffle_vector(x, ir.Constant(_WORDS, ir.Undefined), indices),
                    I32.of_llvm,
                )
                for x in pair
            )
            sums = builder.add(sums, builder.mul(*factors))
    return sums


def _lanes(builder: Any, first: int, vector: Any) -> Any:
    """Half of them."""
    indices = ir.Constant(_HALF, list(range(first, first + _HALF.count)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), indices)


@operation(F32, F32, F32)
def larger_magnitude(builder: Any, a: Any, b: Any) -> Any:
    """Of two numbers that are not negative and any; what is no number is larger than all others."""
    mask = ir.Constant(I32.of_llvm, [2**31 - 1] * LANES)
    a, b = (builder.and_(builder.bitcast(x, I32.of_llvm), mask) for x in (a, b))
    return builder.bitcast(builder.select(builder.icmp_signed(">", a, b), a, b), F32.of_llvm)


@operation(types.float32, F32)
def largest_magnitude(builder: Any, vector: Any) -> Any:
    """Of lanes that are not negative; what is no number is larger than all others."""
    bits = builder.bitcast(vector, I32.of_llvm)
    found = call(builder, "llvm.vector.reduce.smax.v16i32", _INT, [bits])
    return builder.bitcast(found, ir.FloatType())


@operation(types.void, types.int64, types.int64, F32)
def store_int8(builder: Any, address: Any, index: Any, vector: Any) -> None:
    """Integers from -128 to 127; what is no number becomes 0."""
    # Functions of LLVM's that know what is no number work lane by lane.
    zero = ir.Constant(F32.of_llvm, None)
    vector = builder.select(builder.fcmp_ordered("ord", vector, vector), vector, zero)
    integers = builder.fptosi(vector, I32.of_llvm)
    store(builder, builder.trunc(integers, _BYTES), address, index, 1)


@operation(types.void, types.int64, types.int64, types.int32)
def store_int32(builder: Any, address: Any, index: Any, number: Any) -> None:
    builder.store(number, pointer_to(builder, address, index, number.type, 4))


@operation(F32, types.int64, types.int64, types.int32)
def load_int32(builder: Any, address: Any, index: Any, offset: Any) -> Any:
    """Integers and `offset`, as float32."""
    integers = load(builder, address, index, I32.of_llvm, 4)
    first = builder.insert_element(ir.Constant(I32.of_llvm, ir.Undefined), offset, _INT(0))
    zeros = ir.Constant(I32.of_llvm, [0] * LANES)
    offsets = builder.shuffle_vector(first, first, zeros)
    return builder.sitofp(builder.add(integers, offsets), F32.of_llvm)


def load_f16(builder: Any, address: Any, index: Any) -> Any:
    """As float32."""
    return builder.fpext(load(builder, address, index, _HALVES, 2), F32.of_llvm)


def load_bf16_as_f32(builder: Any, address: Any, index: Any) -> Any:
    return builder.fpext(load(builder, address, index, BF16, 2), F32.of_llvm)


def load_int8(builder: Any, address: Any, index: Any) -> Any:
    """As float32."""
    return builder.sitofp(load(builder, address, index, _BYTES, 1), F32.of_llvm)


def look_up(context: Any, builder: Any, table: tuple[int, ...], indices: Any) -> Any:
    """What each of the four bytes in a lane, below the table's size of at most 16, stands for."""
    quads = builder.bitcast(indices, QUADS)
    table += table[:1] * (16 - len(table))
    if has(context, "avx512bw"):
        of_lanes = ir.Constant(QUADS, list(4 * table))
        found = call(builder, "llvm.x86.avx512.pshuf.b.512", QUADS, [of_lanes, quads])
        return builder.bitcast(found, I32.of_llvm)
    # By each bit one half of what is left.
    chosen = [ir.Constant(QUADS, [value] * 4 * LANES) for value in table]
    for bit in range(4):
        mask = ir.Constant(QUADS, [1 << bit] * 4 * LANES)
        is_set = builder.icmp_signed("!=", builder.and_(quads, mask), ir.Constant(QUADS, None))
        pairs = zip(chosen[::2], chosen[1::2], strict=True)
        chosen = [builder.select(is_set, odd, even) for even, odd in pairs]
    return builder.bitcast(chosen[0], I32.of_llvm)
