"""Kernels for the CPU: Python that numba compiles, computed by the threads that torch has.

Layers ask `axion.layers.kernels.of` and fall back to torch; numba is not imported before that is
asked.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

logger = logging.getLogger("axion.engine")

LANES = 16
"""Numbers of a vector, of which a kernel's sizes are multiples."""


def run_on(x: Tensor) -> bool:
    """Whether the kernels compute in the number format of `x`, where `x` is."""
    return x.dtype == torch.bfloat16 and x.is_cpu and work()


@cache
def work() -> bool:
    """Whether they do here. Tried out, not looked up: they need torch to compute with OpenMP, and
    numba to know the processor."""
    if find_spec("numba") is None:
        return False
    try:
        from axion.layers.cpu_kernels.activation import gated

        ones = torch.ones(1, 16, dtype=torch.bfloat16)
        gated("silu", ones, ones)
    except Exception as error:  # whatever a compiler or a linker raises
        logger.warning(
            "The CPU's own kernels do not work here, so plain torch computes, more slowly: %s: %s",
            type(error).__name__,
            error,
        )
        return False
    return True
