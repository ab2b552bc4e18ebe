"""The largest number of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32

from axion.layers.cpu_kernels.compiled.simd import (
    LANES,
    lanes,
    load_bf16,
    spread,
    store_f32,
    where_less,
)
from axion.layers.cpu_kernels.compiled.threads import share


def argmax(part: int) -> Callable[[Any], None]:
    """For `argmax`: the largest number in each lane of each part of a row, and its place."""

    def compute(arguments: Any) -> None:
        out, x, num_rows, size, stride = arguments[0]
        num_parts = (size + part - 1) // part
        infinity = spread(float32(float("inf")))
        start, end = share(num_rows * num_parts)
        for i in range(start, end):
            row = x + 2 * (i // num_parts) * stride
            first = i % num_parts * part
            largest, place = spread(float32(-float("inf"))), spread(float32(first))
            fault = spread(float32(0.0))
            for column in range(first, min(first + part, size), LANES):
                value = load_bf16(row, column)
                here = lanes() + spread(float32(column))
                place = where_less(largest, value, here, place)
                largest = where_less(largest, value, value, largest)
                # What is no number is less than nothing.
                fault = where_less(value, infinity, fault, spread(float32(float("nan"))))
            store_f32(out, 2 * i * LANES, largest + fault)
            store_f32(out, (2 * i + 1) * LANES, place)

    return compute
