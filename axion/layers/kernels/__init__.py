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

MAX_LOW_BIT_ROWS = 256
"""Rows up to which `grouped` multiplies by a weight of a few bits as it is stored.

Reasoned, not measured. For every 128 rows each number takes 5 to 10 instructions anew, as compiled
for Hopper: on an H200 about the time in which two bytes are read from its memory. To unpack a whole
weight first takes the same once, and then its 16 bits are written and read. So both take about the
same time at 256 rows; cuBLAS, which is the better one with matrices, wins beyond."""
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
def num_multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 where Triton interprets."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


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
