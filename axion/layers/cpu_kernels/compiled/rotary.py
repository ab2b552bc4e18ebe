"""Rotary position embeddings of heads, with a norm before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from axion.layers.cpu_kernels.compiled.norm import normalize
from axion.layers.cpu_kernels.compiled.simd import (
    LANES,
    first,
    load_bf16,
    load_pairs,
    round_bf16,
    second,
    store_bf16,
    store_pairs,
)
from axion.layers.cpu_kernels.compiled.threads import share


def rotate() -> Callable[[Any], None]:
    """For `rotate`; a weight at 0 is no norm."""

    def compute(arguments: Any) -> None:
        (
            out,
            x,
            weight,
            is_weight_float32,
            cos,
            sin,
            num_tokens,
            num_heads,
            head_dim,
            num_pairs,
            token_stride,
            head_stride,
            interleaved,
            rounds_first,
            eps,
            offset,
        ) = arguments[0]
        start, end = share(num_tokens * num_heads)
        for row in range(start, end):
            token, head = row // num_heads, row % num_heads
            values = x + 2 * (token * token_stride + head * head_stride)
            rotated = out + 2 * row * head_dim
            if weight:
                normalize(
                    rotated, values, weight, is_weight_float32, head_dim, eps, offset, rounds_first
                )
                values = rotated
            else:
                for i in range(2 * num_pairs, head_dim, LANES):
                    store_bf16(rotated, i, load_bf16(values, i))
            # Of the second half, whose sines are not negated.
            table = 2 * (2 * token + 1) * num_pairs
            _rotate(rotated, values, cos + table, sin + table, num_pairs, interleaved)

    return compute


@njit
def _rotate(out: Any, values: Any, cos: Any, sin: Any, num_pairs: Any, interleaved: Any) -> None:
    for i in range(0, num_pairs, LANES):
        if interleaved:
            pairs = load_pairs(values, 2 * i)
            a, b = first(pairs), second(pairs)
        else:
            a, b = load_bf16(values, i), load_bf16(values, num_pairs + i)
        c, s = load_bf16(cos, i), load_bf16(sin, i)
        new_a = round_bf16(a * c) - round_bf16(b * s)
        new_b = round_bf16(b * c) + round_bf16(a * s)
        if interleaved:
            store_pairs(out, 2 * i, new_a, new_b)
        else:
            store_bf16(out, i, new_a)
            store_bf16(out, num_pairs + i, new_b)
