"""Of each row the largest number: logits of a whole vocabulary are read once, as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.parallel import parallel

_PART = 8192  # columns, so that one row keeps all threads busy
_argmax = parallel(".compiled.argmax:argmax", integers=5)


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each row of `[num_rows, size]`, and its first place.

    Returns:
        `[num_rows]` float32, which is not finite where a row has NaN or infinity, or nothing else
        than the least; and `[num_rows]` int64, which has no meaning there, but is a place, too.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    num_rows, size = x.shape
    assert size <= 2**24  # places are counted in float32
    found = torch.empty(num_rows, -(-size // _PART), 2, LANES)
    _argmax(_PART)(found.data_ptr(), x.data_ptr(), num_rows, size, x.stride(0))
    values, places = found.transpose(1, 2).flatten(2).unbind(1)
    largest = values.amax(-1, keepdim=True)
    place = places.masked_fill(values != largest, size).amin(-1)
    return largest[:, 0], place.clamp(max=size - 1).long()
