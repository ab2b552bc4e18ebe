"""A gated activation in one pass: `activation(gate) * up`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def gated(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """The product, computed in float32 and rounded once.

    Args:
        name: `silu` or `gelu_tanh`.
        gate, up: `[..., size]`, whose rows may be parts of longer ones.
    """
    size = gate.shape[-1]
    out = gate.new_empty(gate.shape)
    gate, up = (_rows(x) for x in (gate, up))
    _gated[(len(gate), triton.cdiv(size, _BLOCK))](
        out, gate, up, gate.stride(0), up.stride(0), size, NAME=name, BLOCK=_BLOCK
    )
    return out


def _rows(x: Tensor) -> Tensor:
    rows = x.flatten(0, -2) if x.ndim > 1 else x[None]
    return rows if rows.stride(-1) == 1 else rows.contiguous()


@triton.jit
def _gated(out, gate, up, gate_stride, up_stride, size, NAME: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < size
    x = tl.load(gate + row * gate_stride + i, mask=mask, other=0.0).to(tl.float32)
    if NAME == "silu":
        x *= tl.sigmoid(x)
    else:  # 0.5 * (1 + tanh(z)) is sigmoid(2 * z)
        x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    x *= tl.load(up + row * up_stride + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * size + i, x.to(out.dtype.element_ty), mask=mask)
