"""Weights that oneDNN has laid out for the CPU once, instead of in every product.

The layout is oneDNN's own choice and such a tensor is opaque to torch. What `rows_view` reads of it
is checked against the weight that it was made of.
"""

from __future__ import annotations

import ctypes
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers import cpu_kernels

# Smaller weights stay in the CPU's caches, and what is gained is below the cost of the call.
_MIN_ELEMENTS = 2**16
# Rows of the weight that lie beside each other.
_ROWS = 64


def is_large(weight: Tensor) -> bool:
    """Whether packing is worth it, where it can be done."""
    return weight.numel() >= _MIN_ELEMENTS


def suits(weight: Tensor) -> bool:
    """Whether the product with the packed weight is there, and faster."""
    return weight.device.type == "cpu" and is_large(weight) and _has_product(weight.dtype)


def pack(weight: Tensor) -> Tensor:
    """`[out_features, in_features]` to what `linear` multiplies by, a copy of the same size."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def linear(x: Tensor, packed: Tensor) -> Tensor:
    """`[..., in_features]` to `[..., out_features]`."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return out


def rows_view(packed: Tensor, weight: Tensor) -> Tensor | None:
    """The packed weight as plain memory, which must not outlive it, for `rows`.

    Args:
        weight: that was packed.

    Returns:
        `[out_features / 64, words of a row, 64]`, where a word is 32 bits; None: it is laid out in
        another way.
    """
    num_rows, num_columns = weight.shape
    num_words = num_columns * weight.itemsize // 4
    shape = (-(-num_rows // _ROWS), num_words, _ROWS)
    num_bytes = 4 * prod(shape)
    if torch.ops.mkldnn._nbytes(packed) < num_bytes:
        return None
    memory = (ctypes.c_byte * num_bytes).from_address(torch.ops.mkldnn.data_ptr(packed))
    view = torch.frombuffer(memory, dtype=torch.int32).view(shape)
    probes = torch.linspace(0, num_rows - 1, 4 * _ROWS).long()
    return view if torch.equal(rows(view, probes, weight.dtype), weight[probes]) else None


def rows(view: Tensor, indices: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows `[n]` of a packed weight of this number format, `[n, in_features]`."""
    if cpu_kernels.work():
        return cpu_kernels.load("packed_rows").rows(view, indices).view(dtype)
    return view[indices // _ROWS, :, indices % _ROWS].view(dtype)


@cache
def has_amx() -> bool:
    """Whether the CPU multiplies tiles of matrices, which oneDNN makes use of: then products of
    many rows are several times faster than others."""
    return torch.cpu._is_amx_tile_supported()


@cache
def _has_product(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU have it; tried out, not looked up."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 128, generator=generator).to(dtype) for n in (3, 64))
    try:
        out = linear(x, pack(weight))
    except (AttributeError, RuntimeError):
        return False
    error = (out.float() - F.linear(x.float(), weight.float())).norm()
    return bool(error <= 4 * torch.finfo(dtype).eps * out.float().norm())
