"""Of each row the largest number: logits of a whole vocabulary are read once, as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.parallel import parallel

_PART = 8192  # columns, so that one row keeps all threads busy
_argmax = parallel(".compiled.argmax:argmax", integers=7)


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the largest numbers of each row of `[num_rows, size]`.

    Returns:
        Its place, `[num_rows]` int64, and whether it is one, `[num_rows]` bool: a row with NaN or
        infinity, or with nothing above minus infinity, has no largest number, but some place.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    num_rows, size = x.shape
    assert size <= 2**24  # places are counted in float32
    places = torch.empty(num_rows, dtype=torch.int64)
    are_usable = torch.empty(num_rows, dtype=torch.bool)
    scratch = torch.empty(num_rows, -(-size // _PART), 3, LANES, dtype=torch.float32)
    _argmax(_PART)(
        places.data_ptr(),
        are_usable.data_ptr(),
        scratch.data_ptr(),
        x.data_ptr(),
        num_rows,
        size,
        x.stride(0),
    )
    return places, are_usable
