"""Kernels for the CPU: Python that numba compiles, computed by the threads of torch.

Layers ask `axion.layers.kernels.of` and fall back to torch; nothing here is imported before. A
kernel is two files: how it is called is here, and what is compiled in `compiled`, which a process
of its own imports (`object_files`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger("axion.engine")

LANES = 16
"""Numbers of a vector, of which a kernel's sizes are multiples."""

BLOCK = 64
"""Columns that lie beside each other in a packed weight."""
MAX_ROWS = 192
"""Rows that `linear` multiplies at once; more are multiplied as fast by oneDNN."""

_given_up = False


def run_on(x: Tensor) -> bool:
    """Whether the kernels compute in the number format of `x`, where `x` is."""
    return x.dtype == torch.bfloat16 and x.is_cpu and work()


def work() -> bool:
    """Whether they do here."""
    return not _given_up and _have_worked()


@cache
def load(name: str) -> ModuleType:
    """The kernels of this name, when they are known to work."""
    return import_module(f"{__name__}.{name}")


def prepare(dtype: torch.dtype, device: torch.device, compute: Callable[[], object]) -> None:
    """Compile the kernels that a model will need, so that no request waits for a compiler.

    Args:
        dtype, device: of the model.
        compute: computes what requests will. If it fails, kernels are not used any more.
    """
    if not run_on(torch.empty(0, dtype=dtype, device=device)):
        return
    from axion.layers.cpu_kernels.object_files import compiler

    try:
        compute()
    except Exception as error:  # whatever a compiler or a linker raises
        _give_up(error)
    finally:
        compiler.end()


@cache
def _have_worked() -> bool:
    """Tried out, not looked up: they need torch to compute with OpenMP, and numba to know the
    processor."""
    if find_spec("numba") is None or find_spec("llvmlite") is None:
        return False
    try:
        from axion.layers.cpu_kernels.linear import linear

        # As packed as not, since all are equal.
        ones = torch.ones(64, 16, dtype=torch.bfloat16)
        out = linear(ones[:1], ones.data_ptr(), 64)
        if not torch.equal(out, torch.full_like(out, 16)):
            raise ArithmeticError("a product is wrong")
    except Exception as error:  # as above
        _give_up(error)
    return not _given_up


def _give_up(error: Exception) -> None:
    global _given_up
    _given_up = True
    logger.warning(
        "The CPU's own kernels do not work here, so plain torch computes, more slowly: %s: %s",
        type(error).__name__,
        error,
    )
