"""Kernels that only tests have, for the process that compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from numba import types
from numba.extending import intrinsic

from axion.layers.cpu_kernels.compiled import integers, simd
from axion.layers.cpu_kernels.compiled.simd import F32, I32
from axion.layers.cpu_kernels.compiled.threads import barrier, num_threads, share, thread


def fill(step: int) -> Callable[[Any], None]:
    """Numbers 0, step, 2 * step ... scaled, each by the thread whose it is."""

    def compute(arguments: Any) -> None:
        out, count, scale = arguments[0]
        start, end = share(count)
        for i in range(start, end):
            simd.store_f32(out, 16 * i, simd.spread(step * i * scale))

    return compute


def count_threads() -> Callable[[Any], None]:
    def compute(arguments: Any) -> None:
        out = arguments[0][0]
        barrier()
        simd.store_f32(out, 16 * thread(), simd.spread(num_threads()))

    return compute


def wrong() -> Callable[[Any], None]:
    def compute(arguments: Any) -> None:
        arguments.nothing_like_this()

    return compute


def multiply_pairs(portably: int) -> Callable[[Any], None]:
    """Of 16 pairs of bfloat16 with 16 others; `portably`: as on a processor that has no instruction
    for it."""

    @intrinsic
    def dot(typing_context: Any, a: types.Integer, b: types.Integer) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, b = (simd.load(builder, x, x.type(0), I32.of_llvm, 4) for x in values)
            zeros = F32.of_llvm(None)
            has = (lambda *_: False) if portably else simd.has
            with patch.object(simd, "has", has):
                return simd.dot_bf16(context, builder, zeros, a, b)

        return F32(types.int64, types.int64), generate

    def compute(arguments: Any) -> None:
        a, b, out = arguments[0]
        simd.store_f32(out, 0, dot(a, b))

    return compute


def multiply_quads(portably: int) -> Callable[[Any], None]:
    """Of 16 times four uint8 with as many int8; `portably`: as above."""

    @intrinsic
    def dot(typing_context: Any, a: types.Integer, b: types.Integer) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            a, b = (simd.load(builder, x, x.type(0), I32.of_llvm, 4) for x in values)
            has = (lambda *_: False) if portably else simd.has
            with patch.object(integers, "has", has):
                sums = integers.dot_int8(context, builder, I32.of_llvm(None), a, b)
            return builder.sitofp(sums, F32.of_llvm)

        return F32(types.int64, types.int64), generate

    def compute(arguments: Any) -> None:
        a, b, out = arguments[0]
        simd.store_f32(out, 0, dot(a, b))

    return compute


def round_to_bfloat16() -> Callable[[Any], None]:
    def compute(arguments: Any) -> None:
        x, out = arguments[0]
        simd.store_bf16(out, 0, simd.load_f32(x, 0))

    return compute
