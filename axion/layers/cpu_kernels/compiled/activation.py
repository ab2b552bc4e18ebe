"""Gated activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32

from axion.layers.cpu_kernels.compiled.simd import (
    LANES,
    exp,
    load_bf16,
    round_bf16,
    spread,
    store_bf16,
)
from axion.layers.cpu_kernels.compiled.threads import share

_BLOCK = 512  # columns of a row that a thread computes at once


def gated() -> Callable[[Any], None]:
    """For `gated`."""

    def compute(arguments: Any) -> None:
        out, gate, up, stride, num_rows, size, is_gelu = arguments[0]
        one = spread(float32(1.0))
        num_blocks = (size + _BLOCK - 1) // _BLOCK
        start, end = share(num_rows * num_blocks)
        for i in range(start, end):
            row, first = i // num_blocks, i % num_blocks * _BLOCK
            gate_row, up_row = gate + 2 * row * stride, up + 2 * row * stride
            out_row = out + 2 * row * size
            for column in range(first, min(first + _BLOCK, size), LANES):
                x = load_bf16(gate_row, column)
                z = x
                if is_gelu:  # 0.5 * (1 + tanh(z)) is sigmoid(2 * z)
                    cubic = spread(float32(1.5957691216057308 * 0.044715)) * x * x
                    z = x * (cubic + spread(float32(1.5957691216057308)))
                x = round_bf16(x / (one + exp(spread(float32(0.0)) - z)))
                store_bf16(out_row, column, x * load_bf16(up_row, column))

    return compute
