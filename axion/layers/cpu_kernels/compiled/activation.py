"""Activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, njit

from axion.layers.cpu_kernels.compiled.simd import (
    LANES,
    exp,
    fma,
    load_bf16,
    maximum,
    round_bf16,
    spread,
    store_bf16,
    where_less,
)
from axion.layers.cpu_kernels.compiled.threads import share

_BLOCK = 512  # columns of a row that a thread computes at once


def gated() -> Callable[[Any], None]:
    """For `gated`."""

    def compute(arguments: Any) -> None:
        out, gate, up, stride, num_rows, size, is_gelu = arguments[0]
        num_blocks = (size + _BLOCK - 1) // _BLOCK
        start, end = share(num_rows * num_blocks)
        for i in range(start, end):
            row, first = i // num_blocks, i % num_blocks * _BLOCK
            gate_row, up_row = gate + 2 * row * stride, up + 2 * row * stride
            out_row = out + 2 * row * size
            for column in range(first, min(first + _BLOCK, size), LANES):
                x = load_bf16(gate_row, column)
                x = round_bf16(_gelu_tanh(x) if is_gelu else _silu(x))
                store_bf16(out_row, column, x * load_bf16(up_row, column))

    return compute


def ungated(name: str) -> Callable[[Any], None]:
    """For `ungated`."""
    activation = _ACTIVATIONS[name]

    def compute(arguments: Any) -> None:
        out, x, count = arguments[0]
        start, end = share(count // LANES)
        for i in range(start * LANES, end * LANES, LANES):
            store_bf16(out, i, activation(load_bf16(x, i)))

    return compute


@njit
def _silu(x: Any) -> Any:
    return x / (spread(float32(1.0)) + exp(spread(float32(0.0)) - x))


@njit
def _sigmoid(x: Any) -> Any:
    one = spread(float32(1.0))
    return one / (one + exp(spread(float32(0.0)) - x))


@njit
def _gelu_tanh(x: Any) -> Any:
    # 0.5 * (1 + tanh(z)) is sigmoid(2 * z).
    cubic = spread(float32(1.5957691216057308 * 0.044715)) * x * x
    z = x * (cubic + spread(float32(1.5957691216057308)))
    return x / (spread(float32(1.0)) + exp(spread(float32(0.0)) - z))


@njit
def _gelu(x: Any) -> Any:
    """`x` times the share of a normal distribution that is below it."""
    zero, half, one = spread(float32(0.0)), spread(float32(0.5)), spread(float32(1.0))
    z = maximum(x, zero - x) * spread(float32(0.7071067811865476))
    # The complementary error function to 1.2e-7 of itself (Numerical Recipes, "erfcc").
    t = one / fma(half, z, one)
    power = spread(float32(0.17087277))
    power = fma(power, t, spread(float32(-0.82215223)))
    power = fma(power, t, spread(float32(1.48851587)))
    power = fma(power, t, spread(float32(-1.13520398)))
    power = fma(power, t, spread(float32(0.27886807)))
    power = fma(power, t, spread(float32(-0.18628806)))
    power = fma(power, t, spread(float32(0.09678418)))
    power = fma(power, t, spread(float32(0.37409196)))
    power = fma(power, t, spread(float32(1.00002368)))
    power = fma(power, t, spread(float32(-1.26551223)))
    beyond = half * t * exp(power - z * z)
    return x * where_less(x, zero, beyond, one - beyond)


@njit
def _relu(x: Any) -> Any:
    return maximum(spread(float32(0.0)), x)


@njit
def _relu2(x: Any) -> Any:
    return _relu(x) * _relu(x)


_ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": _relu2,
    "sigmoid": _sigmoid,
    "silu": _silu,
}
