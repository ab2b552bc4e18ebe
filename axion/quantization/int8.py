"""Weights of eight bits with one scale for each output, multiplied as integers where the hardware
can: the inputs of each token are then rounded to eight bits too."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor, nn

from axion.layers import cpu_kernels, onednn
from axion.layers.cpu_kernels.weights import PackedWeight
from axion.layers.kernels.weights import LowBitWeight, as_words
from axion.quantization.kernel import EmbeddingKernel
from axion.quantization.rows import RowKernel

# ATen's product of bfloat16 and int8 is the best for so few tokens at most; beyond, the weight is
# dequantized.
_MAX_FEW = 16
# It ends the process where inputs are no multiple of this.
_FEW_MULTIPLE = 16
_ZERO = 128
# So many tokens are rounded and multiplied at once: what comes between stays in its caches.
_MAX_ROWS = 256
# What the kernel of `cpu_kernels` is given where oneDNN has AMX for more; elsewhere it is always
# faster.
_MAX_ROWS_BESIDE_AMX = 16
# Its sum of a token's integers is exact for so many.
_MAX_INPUTS = 2**17
# cuBLAS takes more than 16 rows, and multiples of this everywhere.
_CUDA_MIN_ROWS, _CUDA_MULTIPLE = 32, 8


class Int8Kernel(RowKernel, EmbeddingKernel):
    """
    Args:
        codes: `[out_features, in_features]`, int8.
        scale: `[out_features]`.
        rounds_input: inputs may be rounded to eight bits, by the largest of each token.
    """

    def __init__(self, codes: Tensor, scale: Tensor, *, rounds_input: bool) -> None:
        super().__init__(codes.shape[1], len(codes))
        self.is_packed = rounds_input and codes.device.type == "cpu" and _has_vnni_product()
        self.is_cuda_product = (
            rounds_input
            and codes.device.type == "cuda"
            and not codes.shape[0] % _CUDA_MULTIPLE
            and not codes.shape[1] % _CUDA_MULTIPLE
            and _has_cuda_product(codes.device)
        )
        kept = torch.ops.onednn.qlinear_prepack(codes, None) if self.is_packed else codes.clone()
        self.packed_rows = onednn.rows_view(kept, codes) if self.is_packed else None
        self.suits_cpu_kernel = (
            self.packed_rows is not None
            and not self.out_features % cpu_kernels.BLOCK
            and not self.in_features % cpu_kernels.LANES
            and self.in_features <= _MAX_INPUTS
        )
        self.codes = nn.Parameter(kept, requires_grad=False)
        self.scale = nn.Parameter(scale.float().clone(), requires_grad=False)
        self.register_buffer(
            "zeros",
            torch.zeros(len(codes), dtype=torch.int32) if self.is_packed else None,
            persistent=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self._has_cpu_kernel(x):
            return cpu_kernels.load("low_bit").int8_product(x, self.packed_rows, self.scale)
        if self.has_product(x):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        if self.is_cuda_product or (self.is_packed and len(rows) <= _MAX_ROWS):
            out = self._integer_product(rows).to(x.dtype)
        elif self.is_packed:
            out = x.new_empty(len(rows), self.out_features)
            for piece, of_piece in zip(rows.split(_MAX_ROWS), out.split(_MAX_ROWS), strict=True):
                of_piece.copy_(self._integer_product(piece))
        elif (
            len(rows) <= _MAX_FEW
            and not self.in_features % _FEW_MULTIPLE
            and x.device.type == "cpu"
            and x.dtype == torch.bfloat16
        ):
            ones = torch.ones_like(self.scale, dtype=x.dtype)
            out = torch._weight_int8pack_mm(rows, self.codes, ones)
            out = (out.float() * self.scale).to(x.dtype)
        else:
            return super().forward(x)
        return out.view(*x.shape[:-1], self.out_features)

    def _has_cpu_kernel(self, x: Tensor) -> bool:
        return (
            self.suits_cpu_kernel
            and cpu_kernels.run_on(x)
            and (not onednn.has_amx() or x.numel() <= _MAX_ROWS_BESIDE_AMX * self.in_features)
        )

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        return (self.codes[start:end].float() * self.scale[start:end, None]).to(dtype)

    def low_bit(self) -> LowBitWeight | None:
        if self.is_packed or self.in_features % 4:
            return None
        codes = as_words(self.codes)
        return LowBitWeight("int8", codes, (1, self.in_features), factors=self.scale)

    def packed_weight(self) -> PackedWeight | None:
        if self.packed_rows is None or not self.suits_cpu_kernel:
            return None
        max_rows = _MAX_ROWS_BESIDE_AMX if onednn.has_amx() else sys.maxsize
        codes, sizes = self.packed_rows, (self.in_features, self.out_features)
        return PackedWeight("int8", codes, self.scale, *sizes, 0, max_rows)

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.packed_rows is not None:
            codes = onednn.rows(self.packed_rows, input_ids, torch.int8)
        else:
            assert not self.is_packed, "`reads_packed_rows` says so before"
            codes = self.codes[input_ids]
        return (codes.float() * self.scale[input_ids, None]).to(dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        if not self.is_packed:
            return super().dequantize(dtype)
        # The layout is oneDNN's own; a product with ones and zeros is exact.
        ones = torch.eye(self.in_features, dtype=torch.uint8) + _ZERO
        return _vnni_product(ones, self.codes, self.scale, self.zeros).T.to(dtype)

    def _integer_product(self, rows: Tensor) -> Tensor:
        """`[n, in_features]` to `[n, out_features]`, float32."""
        step = rows.abs().amax(-1, keepdim=True).float().div_(127).clamp_(min=1e-30)
        codes = rows.to(torch.float32, copy=True).div_(step).round_()
        if self.is_packed:
            codes = codes.add_(_ZERO).to(torch.uint8)
            return _vnni_product(codes, self.codes, self.scale, self.zeros).mul_(step)
        padding = max(_CUDA_MIN_ROWS - len(rows), -len(rows) % _CUDA_MULTIPLE)
        codes = nn.functional.pad(codes.to(torch.int8), (0, 0, 0, padding))
        product = torch._int_mm(codes, self.codes.T)[: len(rows)]
        return product * self.scale * step


def _vnni_product(codes: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    # Signed inputs would be computed by oneDNN's reference, a thousand times slower, where there
    # is no AMX.
    return torch.ops.onednn.qlinear_pointwise.default(
        *(codes, 1.0, _ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")
    )


@cache
def reads_packed_rows() -> bool:
    """Whether packed weights can be embeddings too."""
    if not _has_vnni_product():
        return False
    codes = torch.arange(128 * 256).remainder(255).sub(127).to(torch.int8).view(128, 256)
    return Int8Kernel(codes, torch.ones(128), rounds_input=True).packed_rows is not None


@cache
def _has_vnni_product() -> bool:
    """Whether the CPU multiplies integers of eight bits without overflow, and torch uses that."""
    if not torch.cpu._is_vnni_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-127, 128, (32, 64), generator=generator) for _ in range(2))
    try:
        packed = torch.ops.onednn.qlinear_prepack(right.to(torch.int8), None)
        ones, zeros = torch.ones(32), torch.zeros(32, dtype=torch.int32)
        out = _vnni_product((left + _ZERO).to(torch.uint8), packed, ones, zeros)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(out, (left @ right.T).float())


@cache
def _has_cuda_product(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-127, 128, (32, 64), generator=generator) for _ in range(2))
    try:
        out = torch._int_mm(left.to(device, torch.int8), right.to(device, torch.int8).T)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(out.cpu(), (left @ right.T).int())
