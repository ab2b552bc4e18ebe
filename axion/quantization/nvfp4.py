"""NVFP4: 16 numbers of four bits (E2M1) share a scale in E4M3, and all scales of a weight a factor.

https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference
has the format. llm-compressor and NVIDIA's ModelOpt store it under different names; the low half of
a byte is the first number in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.layers.kernels.weights import LowBitWeight, as_words
from axion.quantization.float8 import widen
from axion.quantization.format import WeightFormat
from axion.quantization.fp8 import E4M3
from axion.quantization.kernel import Kernel
from axion.quantization.mxfp4 import E2M1_PAIRS
from axion.quantization.rows import RowKernel, look_up
from axion.quantization.stored import FLOATS, Expected

BLOCK = 16


class Nvfp4Kernel(RowKernel):
    """Dequantizes as it multiplies.

    Args:
        codes: `[out_features, in_features / 2]`, uint8.
        scales: `[out_features, in_features / 16]`, float8_e4m3fn.
        factors: `[out_features]`, float32; what scales are multiplied by.
    """

    def __init__(self, codes: Tensor, scales: Tensor, factors: Tensor) -> None:
        super().__init__(codes.shape[1] * 2, len(codes))
        self.codes = nn.Parameter(codes.clone(), requires_grad=False)
        self.scales = nn.Parameter(scales.clone(), requires_grad=False)
        self.factors = nn.Parameter(factors.clone(), requires_grad=False)
        self.register_buffer("table", E2M1_PAIRS.to(codes.device), persistent=False)

    def low_bit(self) -> LowBitWeight | None:
        codes = as_words(self.codes)
        return LowBitWeight("e2m1", codes, (1, BLOCK), self.scales, factors=self.factors)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        numbers = look_up(self.table, self.codes[start:end]).unflatten(1, (-1, BLOCK))
        scales = widen(self.scales[start:end], torch.float32).mul_(self.factors[start:end, None])
        return numbers.mul_(scales[..., None]).flatten(1).to(dtype)


@dataclass(frozen=True)
class Nvfp4Format(WeightFormat):
    """
    Attributes:
        weight, factor: what codes and the factor are called.
        factor_shape: as it is stored.
        divides: what is stored is one over the factor.
    """

    weight: str
    factor: str
    factor_shape: tuple[int, ...]
    divides: bool

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {
            self.weight: Expected((out_features, in_features // 2), ("U8",)),
            "weight_scale": Expected((out_features, in_features // BLOCK), (E4M3,)),
            self.factor: Expected(self.factor_shape, FLOATS),
        }

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        factor = tensors[self.factor].float().flatten()
        return {
            "codes": tensors[self.weight],
            "scales": tensors["weight_scale"],
            "factors": (1 / factor if self.divides else factor).expand(out_features),
        }

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return Nvfp4Kernel(**tensors)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return out_features * (in_features // 2 + in_features // BLOCK + 4)
