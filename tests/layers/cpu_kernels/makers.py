"""Kernels that only tests have, for the process that compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axion.layers.cpu_kernels.compiled import simd
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
