"""What keeps the weight of a linear layer and multiplies by it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers import cpu_kernels, onednn
from axion.layers.cpu_kernels.weights import PackedWeight
from axion.layers.kernels.weights import LowBitWeight


class Kernel(nn.Module, ABC):
    """Keeps the weight of a linear layer, in its parameters, and multiplies by it.

    To override: `dequantize`, and `forward` where there is something better than a whole weight
    that lives as long as one multiplication.
    """

    @abstractmethod
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, `[out_features, in_features]`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return F.linear(x, self.dequantize(x.dtype))

    def low_bit(self) -> LowBitWeight | None:
        """The weight as Triton's kernels read it; None: they do not know the format."""
        return None

    def packed_weight(self) -> PackedWeight | None:
        """The weight as the CPU's kernels read it; None: they do not, or torch is faster."""
        return None


class EmbeddingKernel(Kernel):
    """One whose weight is an embedding too. To override: `embed`."""

    @abstractmethod
    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `[n]` of the weight, `[n, in_features]`."""


class DenseKernel(EmbeddingKernel):
    """A weight that is not quantized: packed for oneDNN where it can be.

    Args:
        weight: `[out_features, in_features]`; what is kept is a copy.
        is_embedding: `embed` is called, so that it is packed only if its rows can still be read.

    Attributes:
        max_rows: of a product that the CPU's own kernel computes; oneDNN computes larger ones.
    """

    def __init__(self, weight: Tensor, *, is_embedding: bool = False) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.out_features, self.in_features = weight.shape
        packed = onednn.pack(weight) if onednn.suits(weight) else None
        self.packed_rows: Tensor | None = None
        has_kernel = packed is not None and cpu_kernels.run_on(weight)
        if has_kernel or (packed is not None and is_embedding):
            self.packed_rows = onednn.rows_view(packed, weight)
            if is_embedding and self.packed_rows is None:
                packed = None
        self.is_packed = packed is not None
        kept = weight.clone() if packed is None else packed
        self.weight = nn.Parameter(kept, requires_grad=False)
        self.max_rows = 0
        if has_kernel and self.packed_rows is not None:
            from axion.layers.cpu_kernels import linear

            self.max_rows = linear.max_rows(len(weight))
            self._linear = partial(
                linear.linear, weight=self.packed_rows.data_ptr(), out_features=len(weight)
            )

    def forward(self, x: Tensor) -> Tensor:
        if 0 < x.shape[:-1].numel() <= self.max_rows and x.dtype == self.dtype:
            return self._linear(x)
        if self.is_packed:
            return onednn.linear(x, self.weight)
        return F.linear(x, self.weight)

    def packed_weight(self) -> PackedWeight | None:
        if self.packed_rows is None or not self.max_rows:
            return None
        return PackedWeight(
            "bf16", self.packed_rows, None, self.in_features, self.out_features, 0, self.max_rows
        )

    def make_batch_invariant(self) -> None:
        """Compute all products alike, where something can that sums in one order."""
        if self.max_rows:
            self.max_rows = sys.maxsize

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.packed_rows is not None:
            return onednn.rows(self.packed_rows, input_ids, self.dtype).to(dtype)
        return F.embedding(input_ids, self.weight).to(dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.to_dense() if self.is_packed else self.weight).to(dtype)
