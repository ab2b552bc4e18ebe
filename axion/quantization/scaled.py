"""Weights beside which there are factors for inputs (what AWQ found to matter was made larger
before it was rounded), or one for all outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.quantization.format import WeightFormat
from axion.quantization.kernel import Kernel
from axion.quantization.stored import FLOATS, Expected


class ScaledInputKernel(Kernel):
    """
    Args:
        factors: `[in_features]`, float32; inputs are multiplied by them.
    """

    def __init__(self, kernel: Kernel, factors: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.factors = nn.Parameter(factors.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.kernel((x * self.factors).to(x.dtype))
        return out

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.kernel.dequantize(torch.float32) * self.factors).to(dtype)


@dataclass(frozen=True)
class ScaledInputFormat(WeightFormat):
    """
    Attributes:
        format: of the weight.
        factors: what these are called.
        divides: what is stored is one over them.
    """

    format: WeightFormat
    factors: str
    divides: bool
    joinable = False

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        weight = self.format.expected(in_features, out_features)
        return weight | {self.factors: Expected((in_features,), FLOATS)}

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        factors = tensors[self.factors].float()
        weight = {name: tensor for name, tensor in tensors.items() if name != self.factors}
        unpacked = self.format.unpack(weight, in_features, out_features)
        return unpacked | {self.factors: 1 / factors if self.divides else factors}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        weight = {name: tensor for name, tensor in tensors.items() if name != self.factors}
        return ScaledInputKernel(self.format.kernel(weight, dtype), tensors[self.factors])

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return 4 * in_features + self.format.num_bytes(in_features, out_features, dtype)


class ScaledOutputKernel(Kernel):
    """
    Args:
        factors: `[out_features]`, float32; outputs are multiplied by them.
    """

    def __init__(self, kernel: Kernel, factors: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.factors = nn.Parameter(factors.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.kernel(x)
        return (out * self.factors).to(x.dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.kernel.dequantize(torch.float32) * self.factors[:, None]).to(dtype)


@dataclass(frozen=True)
class ScaledOutputFormat(WeightFormat):
    """
    Attributes:
        format: of the weight.
        factor: what this is called.
    """

    format: WeightFormat
    factor: str

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        weight = self.format.expected(in_features, out_features)
        return weight | {self.factor: Expected((), FLOATS)}

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        weight = {name: tensor for name, tensor in tensors.items() if name != self.factor}
        unpacked = self.format.unpack(weight, in_features, out_features)
        return unpacked | {self.factor: tensors[self.factor].float().expand(out_features)}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        weight = {name: tensor for name, tensor in tensors.items() if name != self.factor}
        return ScaledOutputKernel(self.format.kernel(weight, dtype), tensors[self.factor])

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return 4 * out_features + self.format.num_bytes(in_features, out_features, dtype)
