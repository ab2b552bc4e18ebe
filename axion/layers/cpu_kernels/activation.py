"""A gated activation in one pass: `activation(gate) * up`."""

from __future__ import annotations

from typing import Any

import torch
from numba import float32
from torch import Tensor

from axion.layers.cpu_kernels.parallel import parallel, share
from axion.layers.cpu_kernels.simd import LANES, exp, load_bf16, round_bf16, spread, store_bf16

_BLOCK = 512  # columns of a row that a thread computes at once
_FEW = 8192  # numbers that one thread has computed before another has begun


def gated(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """The product, rounded where torch rounds: the activation, and what it is multiplied to.

    Args:
        name: `silu` or `gelu_tanh`.
        gate, up: `[..., size]`, whose rows may be parts of longer ones.
    """
    size = gate.shape[-1]
    assert up.shape == gate.shape
    assert up.dtype == gate.dtype
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    gate, up = _rows(gate), _rows(up)
    num_rows = len(gate)
    compute = _gated if num_rows * size > _FEW else _gated.alone
    compute(
        out.data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        gate.stride(0),
        up.stride(0),
        num_rows,
        size,
        name == "gelu_tanh",
    )
    return out


def _rows(x: Tensor) -> Tensor:
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@parallel(integers=8)
def _gated(arguments: Any) -> None:
    out, gate, up, gate_stride, up_stride, num_rows, size, is_gelu = arguments[0]
    one = spread(float32(1.0))
    num_blocks = (size + _BLOCK - 1) // _BLOCK
    start, end = share(num_rows * num_blocks)
    for i in range(start, end):
        row, first = i // num_blocks, i % num_blocks * _BLOCK
        gate_row, up_row = gate + 2 * row * gate_stride, up + 2 * row * up_stride
        out_row = out + 2 * row * size
        for column in range(first, min(first + _BLOCK, size), LANES):
            x = load_bf16(gate_row, column)
            z = x
            if is_gelu:  # 0.5 * (1 + tanh(z)) is sigmoid(2 * z)
                cubic = spread(float32(1.5957691216057308 * 0.044715)) * x * x
                z = x * (cubic + spread(float32(1.5957691216057308)))
            x = round_bf16(x / (one + exp(spread(float32(0.0)) - z)))
            store_bf16(out_row, column, x * load_bf16(up_row, column))
