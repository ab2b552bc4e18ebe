"""Weights that are floating-point numbers of eight bits (E4M3, arXiv:2209.05433), with a scale for
each output or for each block."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from axion.layers import kernels
from axion.layers.kernels.weights import LowBitWeight, as_words
from axion.quantization.rows import RowKernel

MAX = 448.0
# The products of cuBLAS begin at multiples of so many numbers.
_CUDA_MULTIPLE = 16
# Of a number format: the integers of its size, how far up the seven bits of exponent and mantissa
# go, and what the exponent is then too small by.
_WIDER = {
    torch.float32: (torch.int32, 20, 2.0**120),
    torch.bfloat16: (torch.int16, 4, 2.0**120),
    torch.float16: (torch.int16, 7, 2.0**8),
}


def widen(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """E4M3 to a wider format, exactly. Ten times as fast as `codes.to(dtype)` on a CPU.

    The two codes that are no number become 480 and -480.
    """
    integer, shift, factor = _WIDER[dtype]
    sign = torch.iinfo(integer).min
    bits = codes.view(torch.int8).to(integer) << shift
    return (bits & (sign | 0x7F << shift)).view(dtype) * factor


class Float8Kernel(RowKernel):
    """
    Args:
        codes: `[out_features, in_features]`, float8_e4m3fn.
        scale: `[num_row_blocks, num_column_blocks]`, float32, or bfloat16 where it has no more
            digits; every block is of the same size, the last of a row or column may be smaller.
        block: rows and columns of a block.
    """

    def __init__(self, codes: Tensor, scale: Tensor, block: tuple[int, int]) -> None:
        super().__init__(codes.shape[1], len(codes), row_multiple=block[0])
        self.block = block
        self.codes = nn.Parameter(codes.clone(), requires_grad=False)
        self.scale = nn.Parameter(scale.clone(), requires_grad=False)
        self.is_by_row = block[0] == 1 and scale.shape[1] == 1 and scale.dtype == torch.float32
        self.is_cuda_product = (
            self.is_by_row
            and codes.device.type == "cuda"
            and not codes.shape[0] % _CUDA_MULTIPLE
            and not codes.shape[1] % _CUDA_MULTIPLE
            and _has_cuda_product(codes.device)
        )

    def forward(self, x: Tensor) -> Tensor:
        if not (self.is_cuda_product and x.dtype == torch.bfloat16) or self.has_product(x):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        step = (rows.abs().amax(-1, keepdim=True).float() / MAX).clamp_(min=1e-30)
        codes = (rows / step).to(torch.float8_e4m3fn)
        out = torch._scaled_mm(
            codes, self.codes.T, scale_a=step, scale_b=self.scale.T, out_dtype=x.dtype
        )
        return out.view(*x.shape[:-1], self.out_features)

    def low_bit(self) -> LowBitWeight | None:
        is_known = self.scale.shape[1] == 1 or self.block[1] in kernels.LOW_BIT_GROUPS
        if self.in_features % 4 or not is_known:
            return None
        codes = as_words(self.codes)
        if self.is_by_row:
            return LowBitWeight("e4m3", codes, self.block, factors=self.scale.flatten())
        return LowBitWeight("e4m3", codes, self.block, self.scale)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        num_rows, num_columns = self.block
        scale = self.scale[start // num_rows : -(-end // num_rows)]
        if num_rows > 1:
            scale = scale.repeat_interleave(num_rows, 0)[: end - start]
        weight = widen(self.codes[start:end], dtype)
        if scale.shape[1] == 1:
            return weight.mul_(scale)
        if self.in_features % num_columns:
            return weight.mul_(scale.repeat_interleave(num_columns, 1)[:, : self.in_features])
        weight.view(end - start, -1, num_columns).mul_(scale[..., None])
        return weight


@cache
def _has_cuda_product(device: torch.device) -> bool:
    ones = torch.ones(32, 32, device=device)
    codes = ones.to(torch.float8_e4m3fn)
    scales = {"scale_a": 2 * ones[:, :1].contiguous(), "scale_b": 3 * ones[:1].contiguous()}
    try:
        out = torch._scaled_mm(codes, codes.T, **scales, out_dtype=torch.bfloat16)
    except (AttributeError, RuntimeError, ValueError):
        return False
    return bool((out == 6 * 32).all())
