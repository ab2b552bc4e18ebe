"""How a weight is stored: what its format expects, and how a kernel is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.kernel import DenseKernel, EmbeddingKernel, Kernel
from axion.quantization.stored import Expected, StoredTensor

_ITEM_SIZE = {
    **{"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}


class WeightFormat(ABC):
    """How the weight of a linear layer is stored. A frozen dataclass: where those of q, k and v are
    equal, the three become one kernel.

    Attributes:
        joinable: whether they may.
        is_quantized: it is no plain weight.
    """

    joinable: bool = True
    is_quantized: ClassVar[bool] = True

    @abstractmethod
    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        """What must be stored, by the part of its name behind the layer's (`qweight`, `scales`)."""

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        """From what is stored to tensors whose first dimension is `out_features`, or that times a
        fixed fraction, so that layers are joined along it. They may not be changed in place."""
        return tensors

    @abstractmethod
    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        """The kernel for what was unpacked.

        Args:
            tensors: on the device of the model. Mapped from a file, perhaps: what the kernel keeps
                is a copy.
            dtype: of hidden states.
        """

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        """The same for a weight that is an embedding too."""
        raise NotImplementedError(f"{type(self).__name__} has no embeddings")

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        """Bytes that the kernel keeps."""
        tensors = self.expected(in_features, out_features).values()
        return sum(prod(shape) * _ITEM_SIZE[dtypes[-1]] for shape, dtypes in tensors)


@dataclass(frozen=True)
class DenseFormat(WeightFormat):
    """A weight that is not quantized, beside others that are."""

    is_quantized: ClassVar[bool] = False

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {"weight": Expected((out_features, in_features))}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return DenseKernel(tensors["weight"].to(dtype))

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        return DenseKernel(tensors["weight"].to(dtype), is_embedding=True)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return in_features * out_features * dtype.itemsize


class Source(NamedTuple):
    """Where the weight of one projection comes from.

    Attributes:
        path: the projection's, in the names that the model has.
        tensors: what is stored of it, by the part of the name behind `path`.
        num_stacked: so many projections are stored as one tensor, of which this is a part.
    """

    path: str
    format: WeightFormat
    in_features: int
    out_features: int
    tensors: Mapping[str, StoredTensor]
    num_stacked: int | None = None

    def expected(self) -> dict[str, Expected]:
        stack = () if self.num_stacked is None else (self.num_stacked,)
        parts = self.format.expected(self.in_features, self.out_features)
        return {
            f"{self.path}.{name}": Expected((*stack, *shape), dtypes)
            for name, (shape, dtypes) in parts.items()
        }

    def read(self, device: torch.device) -> dict[str, Tensor]:
        names = self.format.expected(self.in_features, self.out_features)
        tensors = {name: self.tensors[name].read().to(device) for name in names}
        return self.format.unpack(tensors, self.in_features, self.out_features)

    def dequantize(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight, `[out_features, in_features]`."""
        return self.format.kernel(self.read(device), dtype).dequantize(dtype)

    def plain(self, dtype: torch.dtype) -> StoredTensor:
        """The weight as a plain tensor, which is dequantized when it is read.

        Raises:
            ModelLoadError: it is not stored as its format expects.
        """
        expected = self.format.expected(self.in_features, self.out_features)
        for name, (shape, dtypes) in expected.items():
            part = self.tensors.get(name)
            if part is None or part.shape != shape or part.dtype not in dtypes:
                raise ModelLoadError(
                    f"{self.path}.{name} is not stored as config.json and its quantization "
                    f"describe it: expected {list(shape)} as {' or '.join(dtypes)}."
                )
        return replace(
            next(iter(self.tensors.values())),
            name=f"{self.path}.weight",
            shape=(self.out_features, self.in_features),
            dtype="F32",
            read=lambda: self.dequantize(torch.device("cpu"), dtype),
        )

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that its kernel keeps."""
        return self.format.num_bytes(self.in_features, self.out_features, dtype)
