"""Vectors of 16 lanes in kernels: `F32`, and `I32` of 32 bits that are pairs of bfloat16, or four
int8. LLVM cuts them to what the processor has.

Addresses are integers, in bytes; an index counts elements.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

from axion.layers.cpu_kernels import LANES


class _BFloat(ir.Type):
    """What llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class Vector(types.Type):
    """A numba type of `LANES` elements of one of LLVM's types."""

    def __init__(self, name: str, element: ir.Type) -> None:
        super().__init__(name=name)
        self.of_llvm = ir.VectorType(element, LANES)


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.of_llvm)


F32 = Vector("F32", ir.FloatType())
I32 = Vector("I32", ir.IntType(32))
BF16 = ir.VectorType(_BFloat(), LANES)
_PAIRS = ir.VectorType(_BFloat(), 2 * LANES)
_INT = ir.IntType(32)


def _at(builder: Any, address: Any, index: Any, vector: ir.VectorType, size: int) -> Any:
    offset = builder.mul(index, ir.Constant(index.type, size))
    return builder.inttoptr(builder.add(address, offset), vector.as_pointer())


def load(builder: Any, address: Any, index: Any, vector: ir.VectorType, size: int) -> Any:
    """The vector whose first element, of `size` bytes, has this index."""
    loaded = builder.load(_at(builder, address, index, vector, size))
    loaded.align = size
    return loaded


def store(builder: Any, value: Any, address: Any, index: Any, size: int) -> None:
    """Where its first element, of `size` bytes, has this index."""
    builder.store(value, _at(builder, address, index, value.type, size)).align = size


def prefetch(builder: Any, address: Any) -> None:
    """Fetch the line of the cache that is at the address, if there is one; it need not exist."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    to_read, near, data = (ir.Constant(_INT, value) for value in (0, 3, 1))
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, to_read, near, data])


def broadcast(builder: Any, address: Any, vector: ir.VectorType) -> Any:
    """The 32 bits at the address, in all lanes."""
    number = builder.load(builder.inttoptr(address, vector.element.as_pointer()))
    number.align = 2
    return _spread(builder, number, vector)


def _spread(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(I32.of_llvm, [0] * LANES))


def call(builder: Any, name: str, result: ir.Type, values: list[Any], **options: Any) -> Any:
    """LLVM's own function of this name."""
    of_type = ir.FunctionType(result, [value.type for value in values])
    function = builder.module.globals.get(name) or ir.Function(builder.module, of_type, name)
    return builder.call(function, values, **options)


def has(context: Any, feature: str) -> bool:
    """Whether code is compiled for a processor with one of LLVM's features."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


def dot_bf16(context: Any, builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """`sums` and in each lane the product of two pairs of bfloat16."""
    if has(context, "avx512bf16"):
        a, b = (builder.bitcast(x, _PAIRS) for x in (a, b))
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", F32.of_llvm, [sums, a, b])
    for half in (_low, _high):
        sums = call(
            builder, "llvm.fma.v16f32", F32.of_llvm, [half(builder, a), half(builder, b), sums]
        )
    return sums


def _low(builder: Any, pairs: Any) -> Any:
    shift = ir.Constant(I32.of_llvm, [16] * LANES)
    return builder.bitcast(builder.shl(pairs, shift), F32.of_llvm)


def _high(builder: Any, pairs: Any) -> Any:
    mask = ir.Constant(I32.of_llvm, [-(2**16)] * LANES)
    return builder.bitcast(builder.and_(pairs, mask), F32.of_llvm)


def _operation(result: types.Type, *operands: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """An operation of kernels on these types, of the function that builds it from LLVM's values."""

    def decorate(build: Callable[..., Any]) -> Any:
        def typed(typing_context: Any, *given: types.Type) -> Any:
            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                return build(builder, *values)

            return result(*operands), generate

        # numba wants to see as many parameters as there are operands.
        typed.__signature__ = inspect.signature(build)  # type: ignore[attr-defined]
        return intrinsic(typed)

    return decorate


@_operation(F32, types.int64, types.int64)
def load_bf16(builder: Any, address: Any, index: Any) -> Any:
    return builder.fpext(load(builder, address, index, BF16, 2), F32.of_llvm)


@_operation(types.void, types.int64, types.int64, F32)
def store_bf16(builder: Any, address: Any, index: Any, vector: Any) -> Any:
    """Rounded to the nearest, ties to even."""
    store(builder, builder.fptrunc(vector, BF16), address, index, 2)


@_operation(types.void, types.int64, types.int64, F32, types.int64)
def store_first_bf16(builder: Any, address: Any, index: Any, vector: Any, count: Any) -> Any:
    """As `store_bf16`, of so many lanes, or all where there are no more."""
    rounded = builder.fptrunc(vector, BF16)
    lanes = ir.Constant(ir.VectorType(count.type, LANES), list(range(LANES)))
    mask = builder.icmp_signed("<", lanes, _spread(builder, count, lanes.type))
    pointer = _at(builder, address, index, BF16, 2)
    align = ir.Constant(_INT, 2)
    call(builder, "llvm.masked.store.v16bf16.p0", ir.VoidType(), [rounded, pointer, align, mask])


@_operation(F32, types.int64, types.int64)
def load_f32(builder: Any, address: Any, index: Any) -> Any:
    return load(builder, address, index, F32.of_llvm, 4)


@_operation(types.void, types.int64, types.int64, F32)
def store_f32(builder: Any, address: Any, index: Any, vector: Any) -> Any:
    store(builder, vector, address, index, 4)


@_operation(F32, types.float32)
def spread(builder: Any, number: Any) -> Any:
    """The number in all lanes."""
    return _spread(builder, number, F32.of_llvm)


@_operation(F32, F32, F32, F32)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c`, rounded once."""
    return call(builder, "llvm.fma.v16f32", F32.of_llvm, [a, b, c])


@_operation(F32, F32, F32)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@_operation(types.float32, F32)
def total(builder: Any, vector: Any) -> Any:
    """The sum of the lanes."""
    zero = ir.Constant(ir.FloatType(), 0.0)
    name = "llvm.vector.reduce.fadd.v16f32"
    return call(builder, name, ir.FloatType(), [zero, vector], fastmath=("reassoc",))


def _binary(name: str) -> Any:
    return _operation(F32, F32, F32)(lambda builder, a, b: getattr(builder, name)(a, b))


_OPERATORS = {
    operator.add: _binary("fadd"),
    operator.sub: _binary("fsub"),
    operator.mul: _binary("fmul"),
    operator.truediv: _binary("fdiv"),
}


def _define(of_python: Callable[..., Any], operation: Any) -> None:
    @overload(of_python, strict=False)
    def _(a: Any, b: Any) -> Any:
        if a is F32 and b is F32:
            return lambda a, b: operation(a, b)
        return None


for _of_python, _of_llvm in _OPERATORS.items():
    _define(_of_python, _of_llvm)


_BYTES = ir.VectorType(ir.IntType(8), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
QUADS = ir.VectorType(ir.IntType(8), 4 * LANES)
_WORDS = ir.VectorType(ir.IntType(16), 2 * LANES)


def dot_int8(context: Any, builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """`sums` and in each lane the product of four uint8 and four int8, exactly."""
    if has(context, "avx512vnni"):
        a, b = (builder.bitcast(x, QUADS) for x in (a, b))
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", I32.of_llvm, [sums, a, b])
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


@_operation(F32, F32, F32)
def larger_magnitude(builder: Any, a: Any, b: Any) -> Any:
    """Of two numbers that are not negative and any; what is no number is larger than all others."""
    mask = ir.Constant(I32.of_llvm, [2**31 - 1] * LANES)
    a, b = (builder.and_(builder.bitcast(x, I32.of_llvm), mask) for x in (a, b))
    return builder.bitcast(builder.select(builder.icmp_signed(">", a, b), a, b), F32.of_llvm)


@_operation(types.float32, F32)
def largest(builder: Any, vector: Any) -> Any:
    """Of lanes that are not negative; what is no number is larger than all others."""
    bits = builder.bitcast(vector, I32.of_llvm)
    found = call(builder, "llvm.vector.reduce.smax.v16i32", _INT, [bits])
    return builder.bitcast(found, ir.FloatType())


@_operation(F32, F32)
def rounded(builder: Any, vector: Any) -> Any:
    """To the nearest integer, ties to even."""
    return call(builder, "llvm.rint.v16f32", F32.of_llvm, [vector])


@_operation(types.void, types.int64, types.int64, F32)
def store_int8(builder: Any, address: Any, index: Any, vector: Any) -> None:
    """Integers from -128 to 127; what is no number becomes 0."""
    # Functions of LLVM's that know what is no number work lane by lane.
    zero = ir.Constant(F32.of_llvm, None)
    vector = builder.select(builder.fcmp_ordered("ord", vector, vector), vector, zero)
    integers = builder.fptosi(vector, I32.of_llvm)
    store(builder, builder.trunc(integers, _BYTES), address, index, 1)


@_operation(types.void, types.int64, types.int64, types.float32)
def store_float(builder: Any, address: Any, index: Any, number: Any) -> None:
    builder.store(number, _at(builder, address, index, number.type, 4))


@_operation(types.void, types.int64, types.int64, types.int32)
def store_int(builder: Any, address: Any, index: Any, number: Any) -> None:
    builder.store(number, _at(builder, address, index, number.type, 4))


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
