"""Kernels of random weights, in all formats that Triton's kernels read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from axion.quantization.bitsandbytes import FourBitKernel
from axion.quantization.float8 import Float8Kernel
from axion.quantization.int8 import Int8Kernel
from axion.quantization.integers import IntegerKernel
from axion.quantization.mxfp4 import Mxfp4Kernel
from axion.quantization.nvfp4 import Nvfp4Kernel
from axion.quantization.rows import RowKernel


def _integers(codes: Tensor, *, bits: int, num_groups: int) -> RowKernel:
    # By columns, as some formats store them.
    scales = torch.rand(num_groups, len(codes), device=codes.device).T + 0.1
    zeros = torch.randint(2**bits, scales.shape, dtype=torch.uint8, device=codes.device)
    return IntegerKernel(codes, scales, zeros, None, bits)


def _e4m3(codes: Tensor, *, block: tuple[int, int]) -> RowKernel:
    shape = [-(-size // of) for size, of in zip(codes.shape, block, strict=True)]
    scale = torch.rand(shape, device=codes.device)
    return Float8Kernel(codes.view(torch.float8_e4m3fn), scale, block)


def _mxfp4(codes: Tensor) -> RowKernel:
    blocks = codes.unflatten(1, (-1, 16))
    return Mxfp4Kernel(blocks, codes[:, : blocks.shape[1]].clamp(118, 136))


def _nvfp4(codes: Tensor) -> RowKernel:
    scales = codes[:, ::8].clamp(0, 126).contiguous().view(torch.float8_e4m3fn)
    return Nvfp4Kernel(codes, scales, torch.rand(len(codes), device=codes.device))


def _nf4(codes: Tensor, *, is_nested: bool) -> RowKernel:
    rows, num_bytes = codes.shape
    scales, numbers = codes.flatten()[: codes.numel() // 16], torch.linspace(-1, 1, 16)
    nested: list[Tensor] = []
    if is_nested:
        nested = [torch.rand(-(-len(scales) // 8), device=codes.device) + 1 for _ in range(2)]
    return FourBitKernel(
        codes.flatten(),
        scales if is_nested else scales.float(),
        *nested,
        in_features=2 * num_bytes,
        out_features=rows,
        block_size=32,
        nested_block_size=8,
        numbers=numbers,
        nested_numbers=torch.linspace(-1, 1, 256) if is_nested else None,
    )


FORMATS: dict[str, Callable[[Tensor], RowKernel]] = {
    "int8": lambda codes: Int8Kernel(
        codes.view(torch.int8), torch.rand(len(codes), device=codes.device), rounds_input=False
    ),
    "uint8 in groups": lambda codes: _integers(codes, bits=8, num_groups=5),
    "uint4 in groups": lambda codes: _integers(codes, bits=4, num_groups=5),
    "uint4": lambda codes: _integers(codes, bits=4, num_groups=1),
    "E4M3": lambda codes: _e4m3(codes, block=(1, codes.shape[1])),
    "E4M3 in blocks": lambda codes: _e4m3(codes, block=(24, 128)),
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "NF4": lambda codes: _nf4(codes, is_nested=False),
    "NF4, nested": lambda codes: _nf4(codes, is_nested=True),
}
"""What takes bytes `[out_features, n]` to the kernel of a weight whose codes they are."""


def random_kernel(format: str, device: torch.device, *, num_outputs: int = 72) -> RowKernel:
    """One of 160 bytes an output."""
    codes = torch.randint(256, (num_outputs, 160), dtype=torch.uint8, device=device)
    return FORMATS[format](codes)
