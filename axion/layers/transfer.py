"""Between host and device without a wait: the one place where the host waits is `Readback.wait`.

On CUDA a copy is asynchronous only between the device and pinned memory. torch keeps pinned buffers
and gives one out again when the copies from it are done, so none is allocated step by step.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

# Parts begin at multiples of 128 bytes: kernels read aligned arrays faster, and Triton compiles
# one variant instead of two.
_ALIGNMENT = 16


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on the device; on CUDA the host does not wait for what the device still computes."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def pack_to_device(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies of int64 arrays, in one transfer; each contiguous."""
    if device.type == "cpu":
        return [torch.from_numpy(array.copy()) for array in arrays]
    return _pack(arrays, device)


def _pack(arrays: list[np.ndarray], device: torch.device) -> list[Tensor]:
    sizes = [-(-array.size // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    offsets = list(accumulate(sizes, initial=0))
    host = torch.empty(offsets[-1], dtype=torch.int64, pin_memory=device.type == "cuda")
    flat = host.numpy()
    for array, offset in zip(arrays, offsets, strict=False):
        flat[offset : offset + array.size] = array.ravel()
    packed = host.to(device, non_blocking=True)
    return [
        packed[offset : offset + array.size].view(array.shape)
        for array, offset in zip(arrays, offsets, strict=False)
    ]


class Readback:
    """Tensors on their way to the host, behind what the device was given to do so far."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, when they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors
