"""Sums and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32

from axion.layers.cpu_kernels.compiled.simd import LANES, load_bf16, spread, store_bf16
from axion.layers.cpu_kernels.compiled.threads import share

_BLOCK = 512  # columns of a row that a thread computes at once


def elementwise(name: str) -> Callable[[Any], None]:
    """For `elementwise`; where `b` is at 0 it is the number, and `b_stride` is 0 where all rows
    have the same."""
    multiplies = name == "multiply"

    def compute(arguments: Any) -> None:
        out, a, b, b_stride, num_rows, size, number = arguments[0]
        num_blocks = (size + _BLOCK - 1) // _BLOCK
        start, end = share(num_rows * num_blocks)
        other = spread(float32(number))
        for i in range(start, end):
            row, first = i // num_blocks, i % num_blocks * _BLOCK
            of_a, of_b, of_out = a + 2 * row * size, b + 2 * row * b_stride, out + 2 * row * size
            for column in range(first, min(first + _BLOCK, size), LANES):
                value = load_bf16(of_a, column)
                if b != 0:
                    other = load_bf16(of_b, column)
                store_bf16(of_out, column, value * other if multiplies else value + other)

    return compute
