"""Where a model computes, and in which number format."""

from __future__ import annotations

from typing import Any

import torch

from axion.engine.control_group import num_processors
from axion.errors import ModelLoadError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else CPU.

    Raises:
        ModelLoadError: the device that was asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(
            f"DEVICE={name} was asked for, and torch sees no CUDA device here. "
            "Use DEVICE=cpu or DEVICE=auto, or install a CUDA build of torch."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"DEVICE={name} was asked for, and there are {torch.cuda.device_count()} CUDA devices."
        )
    return device


def take_device(name: str) -> torch.device:
    """`resolve_device`, and torch's current device from now on: to that belong kernels, streams,
    events and graphs that do not say to which."""
    device = resolve_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def take_threads(number: int | None) -> None:
    """Have torch compute on so many threads of the CPU from now on; None: on one a core, but no
    more than this process may have the time of. A thread that is stopped in the middle of a step,
    as the kernel does then, is waited for by all others."""
    if number is None:
        quota = num_processors()
        if quota is None or quota >= torch.get_num_threads():
            return
        number = max(1, int(quota))
    torch.set_num_threads(number)


def resolve_dtype(
    dtype: str | torch.dtype, config: dict[str, Any], device: torch.device
) -> torch.dtype:
    """The number format to compute in.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: the checkpoint's own (`dtype` or
            `torch_dtype` in config.json) where the device computes it natively, else float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return _DTYPES[dtype]
    own = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)
    return own if own == torch.float32 or _is_native(own, device) else torch.float32


def _is_native(dtype: torch.dtype, device: torch.device) -> bool:
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
