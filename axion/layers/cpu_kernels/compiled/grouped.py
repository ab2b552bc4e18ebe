"""For `grouped`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba

from axion.layers.cpu_kernels import BLOCK
from axion.layers.cpu_kernels.compiled import blocks, linear, low_bit, simd
from axion.layers.cpu_kernels.compiled.threads import share
from axion.layers.cpu_kernels.layouts import LAYOUTS


class _Product(NamedTuple):
    """How weights of a kind are multiplied by.

    Attributes:
        prepare: makes of inputs what `multiply` reads.
        multiply: rows with a block of columns.
        room_bytes: that it needs.
    """

    prepare: Callable[..., None]
    multiply: Callable[..., None]
    room_bytes: int


def grouped_product(kind: str, group_size: int, max_rows: int) -> Callable[[Any], None]:
    """The blocks of all experts that have rows lie in one sequence, of which each thread has a
    part. What `rows` holds is of so many bytes a row, and made of `x` first."""
    prepare, multiply, room_bytes = _product(kind, group_size, max_rows)

    def compute(arguments: Any) -> None:
        (
            x,
            rows,
            row_bytes,
            weights,
            ends,
            out,
            num_experts,
            in_features,
            out_features,
        ) = arguments[0]
        prepare(x, rows, simd.load_int32(ends, num_experts - 1), in_features)
        room = simd.on_stack(room_bytes)
        num_blocks = (out_features + BLOCK - 1) // BLOCK
        num_used = end = 0
        for expert in range(num_experts):
            begin, end = end, simd.load_int32(ends, expert)
            num_used += begin < end
        # Counted from the expert's first block on.
        start, stop = share(num_used * num_blocks)
        end = 0
        for expert in range(num_experts):
            begin, end = end, simd.load_int32(ends, expert)
            if begin == end:
                continue
            codes = simd.load_int(weights, 2 * expert)
            scales = simd.load_int(weights, 2 * expert + 1)
            for block in range(max(start, 0), min(stop, num_blocks)):
                for row in range(begin, end, max_rows):
                    multiply(
                        room,
                        rows + row * row_bytes,
                        min(end - row, max_rows),
                        codes,
                        scales,
                        out + 2 * row * out_features,
                        in_features,
                        out_features,
                        block,
                    )
            start -= num_blocks
            stop -= num_blocks

    return compute


def _product(kind: str, group_size: int, max_rows: int) -> _Product:
    if kind == "bf16":
        block = linear.block_product()
        return _Product(
            numba.njit(lambda x, rows, num_rows, in_features: None),
            numba.njit(
                lambda room, rows, num_rows, weight, scales, *others: block(
                    room, rows, num_rows, weight, *others
                )
            ),
            linear.ROOM,
        )
    if kind in LAYOUTS:
        return _Product(*blocks.block_product(kind), 0)
    sums_bytes = low_bit.sums_bytes(max_rows)
    if kind == "int8":
        prepare = numba.njit(
            lambda x, rows, num_rows, in_features: low_bit.round_rows(
                x, rows, num_rows, in_features, in_features
            )
        )
        return _Product(prepare, low_bit.int8_block(), sums_bytes)
    prepare = numba.njit(
        lambda x, rows, num_rows, in_features: low_bit.round_rows(
            x, rows, num_rows, in_features, low_bit.GROUP
        )
    )
    return _Product(prepare, low_bit.int4_block(group_size), low_bit.CODES_BYTES + sums_bytes)
