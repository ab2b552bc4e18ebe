"""Kernels on a CUDA device, or in Triton's interpreter on the CPU.

Triton is told to interpret by a variable that it reads when it is imported, so the kernels that one
process runs are either interpreted or compiled. `tests/layers/test_kernels.py` runs these tests
interpreted, in processes of their own.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session", autouse=True)
def _multiply_bfloat16() -> None:
    """The interpreter keeps bfloat16 as integers, and multiplies matrices of these."""
    if not IS_INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    multiply = interpreter.InterpreterBuilder.create_dot

    def widen(x: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        wide = interpreter._convert_float(x.data, tl.bfloat16, tl.float32, None)
        return interpreter.TensorHandle(wide.view("float32"), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widen(a), widen(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    if IS_INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; tests/layers/test_kernels.py interprets the kernels")
    return torch.device("cuda")
