"""The largest number of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32

from axion.layers.cpu_kernels.compiled.simd import (
    LANES,
    lanes,
    largest,
    load_bf16,
    load_f32,
    spread,
    store_bool,
    store_f32,
    store_int,
    total,
    where_less,
)
from axion.layers.cpu_kernels.compiled.threads import barrier, share


def argmax(part: int) -> Callable[[Any], None]:
    """For `argmax`: what is largest in each lane of each part of a row, then in the row."""

    def compute(arguments: Any) -> None:
        places, are_usable, scratch, x, num_rows, size, stride = arguments[0]
        infinity = spread(float32(float("inf")))
        num_parts = (size + part - 1) // part
        start, end = share(num_rows * num_parts)
        for i in range(start, end):
            row = x + 2 * (i // num_parts) * stride
            begin = i % num_parts * part
            best, place = spread(float32(-float("inf"))), spread(float32(begin))
            fault = spread(float32(0.0))
            for column in range(begin, min(begin + part, size), LANES):
                value = load_bf16(row, column)
                here = lanes() + spread(float32(column))
                place = where_less(best, value, here, place)
                best = where_less(best, value, value, best)
                # NaN is less than nothing.
                fault = where_less(value, infinity, fault, spread(float32(1.0)))
            of_part = scratch + 4 * LANES * 3 * i
            store_f32(of_part, 0, best)
            store_f32(of_part, LANES, place)
            store_f32(of_part, 2 * LANES, fault)
        barrier()
        start, end = share(num_rows)
        for row in range(start, end):
            of_row = scratch + 4 * LANES * 3 * row * num_parts
            best, place = load_f32(of_row, 0), load_f32(of_row, LANES)
            fault = load_f32(of_row, 2 * LANES)
            for i in range(1, num_parts):
                of_part = of_row + 4 * LANES * 3 * i
                value = load_f32(of_part, 0)
                place = where_less(best, value, load_f32(of_part, LANES), place)
                best = where_less(best, value, value, best)
                fault = fault + load_f32(of_part, 2 * LANES)
            of_all = largest(best)
            # The first of those lanes that are not less.
            place = where_less(best, spread(of_all), infinity, place)
            first = -largest(spread(float32(0.0)) - place)
            store_int(places, row, int(first))
            is_usable = total(fault) == float32(0.0) and of_all > float32(-float("inf"))
            store_bool(are_usable, row, is_usable)

    return compute
