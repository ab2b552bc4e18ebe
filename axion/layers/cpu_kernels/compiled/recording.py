"""Kernels one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from axion.layers.cpu_kernels.compiled.simd import load_int, operation
from axion.layers.cpu_kernels.compiled.threads import barrier


def run() -> Callable[[Any], None]:
    """For `recording`: calls, each the addresses of a kernel and of its arguments."""

    def compute(arguments: Any) -> None:
        calls, count = arguments[0]
        for i in range(count):
            _call(load_int(calls, 2 * i), load_int(calls, 2 * i + 1))
            barrier()

    return compute


@operation(types.void, types.int64, types.int64)
def _call(builder: Any, kernel: Any, arguments: Any) -> None:
    of_type = ir.FunctionType(ir.VoidType(), [arguments.type])
    builder.call(builder.inttoptr(kernel, of_type.as_pointer()), [arguments])
