"""Norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import float32, njit

from axion.layers.cpu_kernels.compiled.simd import (
    LANES,
    fma,
    load_bf16,
    load_f32,
    round_bf16,
    spread,
    store_bf16,
    total,
)
from axion.layers.cpu_kernels.compiled.threads import share


def rms_norm() -> Callable[[Any], None]:
    """For `rms_norm`; a residual at 0 is none."""

    def compute(arguments: Any) -> None:
        (
            out,
            x,
            residual,
            added,
            weight,
            is_weight_float32,
            num_tokens,
            num_heads,
            size,
            token_stride,
            head_stride,
            rounds_first,
            eps,
            offset,
        ) = arguments[0]
        start, end = share(num_tokens * num_heads)
        for row in range(start, end):
            token, head = row // num_heads, row % num_heads
            values = x + 2 * (token * token_stride + head * head_stride)
            of_row = 2 * row * size
            if residual:
                # Rounded, as the sum that the next layer adds to is.
                for i in range(0, size, LANES):
                    value = load_bf16(values, i) + load_bf16(residual + of_row, i)
                    store_bf16(added + of_row, i, value)
                values = added + of_row
            normalize(
                out + of_row, values, weight, is_weight_float32, size, eps, offset, rounds_first
            )

    return compute


@njit
def normalize(
    out: Any,
    values: Any,
    weight: Any,
    is_weight_float32: Any,
    size: Any,
    eps: Any,
    offset: Any,
    rounds_first: Any,
) -> None:
    """The norm of so many numbers, which may be written where they are."""
    squares = spread(float32(0.0))
    for i in range(0, size, LANES):
        value = load_bf16(values, i)
        squares = fma(value, value, squares)
    mean = total(squares) / float32(size)
    scale = spread(float32(1.0) / math.sqrt(mean + float32(eps)))
    for i in range(0, size, LANES):
        value = load_bf16(values, i) * scale
        if rounds_first:
            value = round_bf16(value)
        factor = load_f32(weight, i) if is_weight_float32 else load_bf16(weight, i)
        store_bf16(out, i, value * (factor + spread(float32(offset))))


def layer_norm() -> Callable[[Any], None]:
    """For `layer_norm`; a weight and a bias at 0 are none."""

    def compute(arguments: Any) -> None:
        out, x, weight, bias, num_tokens, num_heads, size, token_stride, head_stride, eps = (
            arguments[0]
        )
        start, end = share(num_tokens * num_heads)
        for row in range(start, end):
            token, head = row // num_heads, row % num_heads
            values = x + 2 * (token * token_stride + head * head_stride)
            sums = spread(float32(0.0))
            for i in range(0, size, LANES):
                sums = sums + load_bf16(values, i)
            mean = spread(total(sums) / float32(size))
            squares = spread(float32(0.0))
            for i in range(0, size, LANES):
                value = load_bf16(values, i) - mean
                squares = fma(value, value, squares)
            variance = total(squares) / float32(size)
            scale = spread(float32(1.0) / math.sqrt(variance + float32(eps)))
            for i in range(0, size, LANES):
                value = (load_bf16(values, i) - mean) * scale
                if weight != 0:
                    value = value * load_bf16(weight, i)
                if bias != 0:
                    value = value + load_bf16(bias, i)
                store_bf16(out + 2 * row * size, i, value)

    return compute
