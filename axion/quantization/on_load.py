"""The setting QUANTIZATION: plain weights are quantized when they are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.linear import DenseLinear, Linear
from axion.layers.moe import ExpertLinear
from axion.quantization import float8, int8, integers
from axion.quantization.float8 import Float8Kernel
from axion.quantization.format import DenseFormat, WeightFormat
from axion.quantization.int8 import Int8Kernel
from axion.quantization.kernel import EmbeddingKernel, Kernel
from axion.quantization.layers import QuantizedLinear, quantized_experts
from axion.quantization.method import QuantizationMethod
from axion.quantization.rows import MAX_PIECE
from axion.quantization.stored import StoredTensor

GROUP_SIZE = 32
"""Inputs that share a scale, of four bits."""
# Smaller layers are gates: nothing to save, and much to lose.
_MIN_OUTPUTS = 16


class OnLoad(QuantizationMethod, ABC):
    """Quantizes every linear layer, one at a time, as soon as it is filled.

    Embeddings stay as they are, but for one that a head of eight bits is tied to. To override:
    `kernel` and `kernel_bytes`.
    """

    name: ClassVar[str]  # type: ignore[misc]

    def __init__(self) -> None:
        self._layers: set[nn.Module] = set()

    @abstractmethod
    def kernel(self, weight: Tensor, dtype: torch.dtype) -> Kernel:
        """Quantize a weight `[out_features, in_features]`."""

    @abstractmethod
    def kernel_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        """Bytes that the kernel of a weight keeps."""

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        super().prepare(model, stored)
        owners: dict[nn.Parameter, int] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                owners[parameter] = owners.get(parameter, 0) + 1
        self._layers = {
            module
            for module in model.modules()
            if isinstance(module, Linear | ExpertLinear)
            and not isinstance(module, DenseLinear)
            and module.out_features >= _MIN_OUTPUTS
            and owners[module.weight] == 1
        }
        if not self._layers:
            raise ModelLoadError(
                f"QUANTIZATION={self.name} finds no layer to quantize in the model. Unset it."
            )

    def num_bytes(self, module: nn.Module, dtype: torch.dtype) -> int:
        own = super().num_bytes(module, dtype)
        if module not in self._layers:
            return own
        num_experts = module.num_experts if isinstance(module, ExpertLinear) else 1
        plain = module.weight.numel() * dtype.itemsize
        kept = self.kernel_bytes(module.in_features, module.out_features, dtype)
        return own - plain + num_experts * kept

    def loading_bytes(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> int:
        if module in self._layers:
            return module.weight.numel() * dtype.itemsize
        return super().loading_bytes(module, device, dtype)

    def finish(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        if module not in self._layers:
            return super().finish(module, device, dtype)
        self._layers.remove(module)
        if isinstance(module, Linear):
            return QuantizedLinear(module, [], self.kernel(module.weight.detach(), dtype))
        kernels = (self.kernel(weight, dtype) for weight in module.weight.detach())
        return quantized_experts(module, kernels)


@dataclass(frozen=True)
class _Int8Format(DenseFormat):
    """A plain weight that becomes one of eight bits."""

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        return _int8_kernel(tensors["weight"], rounds_input=True)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return out_features * (in_features + 4)


class Int8OnLoad(OnLoad):
    name = "int8"

    def embedding_format(self, tensor: StoredTensor, is_head: bool) -> WeightFormat | None:
        if is_head and int8.reads_packed_rows():
            return _Int8Format()
        return super().embedding_format(tensor, is_head)

    def kernel(self, weight: Tensor, dtype: torch.dtype) -> Kernel:
        return _int8_kernel(weight, rounds_input=True)

    def kernel_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return out_features * (in_features + 4)


class Int4OnLoad(Int8OnLoad):
    """Four bits in groups; eight where a group would not fill up."""

    name = "int4"

    def kernel(self, weight: Tensor, dtype: torch.dtype) -> Kernel:
        if weight.shape[1] % GROUP_SIZE:
            return _int8_kernel(weight, rounds_input=False)
        groups = weight.float().unflatten(1, (-1, GROUP_SIZE))
        low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
        scale = _steps(high - low, 15).to(dtype).float()
        zero = (-low / scale).round_().clamp_(0, 15)
        codes = (groups / scale[..., None]).round_().add_(zero[..., None]).clamp_(0, 15)
        return integers.integer_kernel(
            integers.pack_nibbles(codes.flatten(1).to(torch.uint8)),
            scale.to(dtype),
            zero.to(torch.uint8),
            dtype=dtype,
            bits=4,
            group_size=GROUP_SIZE,
        )

    def kernel_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        if in_features % GROUP_SIZE:
            return super().kernel_bytes(in_features, out_features, dtype)
        return integers.num_bytes(
            in_features,
            out_features,
            dtype,
            bits=4,
            group_size=GROUP_SIZE,
            scale_bytes=dtype.itemsize,
        )


class Fp8OnLoad(OnLoad):
    name = "fp8"

    def kernel(self, weight: Tensor, dtype: torch.dtype) -> Kernel:
        weight = weight.float()
        scale = _steps(weight.abs().amax(1, keepdim=True), float8.MAX)
        return Float8Kernel((weight / scale).to(torch.float8_e4m3fn), scale, (1, weight.shape[1]))

    def kernel_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return out_features * (in_features + 4)


def _int8_kernel(weight: Tensor, *, rounds_input: bool) -> Int8Kernel:
    codes = torch.empty_like(weight, dtype=torch.int8)
    scale = weight.new_empty(len(weight), dtype=torch.float32)
    step = max(MAX_PIECE // weight.shape[1], 1)
    for rows, of_codes, of_scale in zip(
        *(x.split(step) for x in (weight, codes, scale)), strict=True
    ):
        rows = rows.float()
        of_scale.copy_(_steps(rows.abs().amax(1), 127))
        of_codes.copy_((rows / of_scale[:, None]).round_())
    return Int8Kernel(codes, scale, rounds_input=rounds_input)


def _steps(extent: Tensor, num_steps: float) -> Tensor:
    return (extent / num_steps).clamp_(min=1e-12)
