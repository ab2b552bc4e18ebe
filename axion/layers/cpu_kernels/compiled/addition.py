"""Sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axion.layers.cpu_kernels.compiled.simd import LANES, load_bf16, store_bf16
from axion.layers.cpu_kernels.compiled.threads import share

_BLOCK = 512  # columns of a row that a thread computes at once


def add() -> Callable[[Any], None]:
    """For `add`; `b_stride` is 0 where all rows get the same added."""

    def compute(arguments: Any) -> None:
        out, a, b, b_stride, num_rows, size = arguments[0]
        num_blocks = (size + _BLOCK - 1) // _BLOCK
        start, end = share(num_rows * num_blocks)
        for i in range(start, end):
            row, first = i // num_blocks, i % num_blocks * _BLOCK
            of_a, of_b, of_out = a + 2 * row * size, b + 2 * row * b_stride, out + 2 * row * size
            for column in range(first, min(first + _BLOCK, size), LANES):
                store_bf16(of_out, column, load_bf16(of_a, column) + load_bf16(of_b, column))

    return compute
