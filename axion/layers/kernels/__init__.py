"""Triton kernels, for CUDA. Layers ask `of`, or `run_on` for what there is on CUDA alone, and fall
back to torch; nothing here is imported before that says yes, and triton not before that either."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from axion.layers import cpu_kernels

logger = logging.getLogger("axion.engine")

MAX_LOW_BIT_ROWS = 4
"""Rows that `low_bit` multiplies at once; for more, tensor cores are faster, even where they need
the weight in another form."""
LOW_BIT_GROUPS = (16, 32, 64, 128, 256, 512, 1024)
"""Inputs of a group that it takes."""


def of(name: str, x: Tensor, size: int | None = None) -> ModuleType | None:
    """The kernels called `name` that compute where `x` is and in its number format: a module in
    here, or in `axion.layers.cpu_kernels`; None: there is none there, and torch computes.

    Args:
        size: how many numbers are computed alike; None: the last dimension of `x`.
    """
    if run_on(x):
        return _module(f"axion.layers.kernels.{name}")
    if cpu_kernels.run_on(x) and (size or x.shape[-1]) % cpu_kernels.LANES == 0:
        return _module(f"axion.layers.cpu_kernels.{name}")
    return None


@cache
def _module(name: str) -> ModuleType | None:
    return import_module(name) if find_spec(name) else None


def run_on(x: Tensor) -> bool:
    """Whether the kernels compute on the device that `x` is on."""
    return x.is_cuda and _work_on(x.device)


@cache
def _work_on(device: torch.device) -> bool:
    """Tried out, not looked up: Triton needs a C compiler, too, and a GPU that is not too old."""
    if find_spec("triton") is None:
        return False
    if device.index != torch.cuda.current_device():  # that is where Triton launches
        return False
    from axion.layers.kernels.activation import gated

    ones = torch.ones(1, 16, device=device)
    try:
        gated("silu", ones, ones)
    except Exception as error:  # whatever a compiler or a driver raises
        logger.warning(
            "Triton does not work here, so plain torch computes, more slowly: %s: %s",
            type(error).__name__,
            error,
        )
        return False
    return True
