"""Rows of a packed weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axion.layers.cpu_kernels.compiled.simd import load_float, load_int, store_float
from axion.layers.cpu_kernels.compiled.threads import share


def gather(block: int) -> Callable[[Any], None]:
    """For `rows`, of a weight in which so many rows lie beside each other."""

    def compute(arguments: Any) -> None:
        out, view, indices, num_indices, num_rows, num_words = arguments[0]
        start, end = share(num_indices)
        for i in range(start, end):
            row = min(max(load_int(indices, i), 0), num_rows - 1)
            first = row // block * num_words * block + row % block
            for word in range(num_words):
                store_float(out, i * num_words + word, load_float(view, first + word * block))

    return compute
