"""Weights as GGUF files have them: laid out for the kernels of the CPU; or kept as stored, and
dequantized in pieces when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.hub.gguf import FLOAT_TYPES, TENSOR_TYPES, TensorType
from axion.layers import cpu_kernels
from axion.quantization import gguf_packed
from axion.quantization.format import WeightFormat
from axion.quantization.gguf_blocks import dequantize
from axion.quantization.kernel import EmbeddingKernel
from axion.quantization.method import StoredQuantized
from axion.quantization.scaled import ScaledOutputFormat
from axion.quantization.stored import Expected, StoredTensor

BLOCK_TYPES = {kind.name: kind for kind in TENSOR_TYPES.values() if kind.name not in FLOAT_TYPES}

# Numbers that are dequantized at once.
_PIECE = {"cpu": 2**20, "cuda": 2**24}


class BlockKernel(EmbeddingKernel):
    """Keeps rows of blocks.

    Args:
        weight: uint8, `[out_features, in_features / block_size * num_bytes]`.
    """

    def __init__(self, weight: Tensor, kind: TensorType) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.kind = kind
        row_size = weight.shape[1] // kind.num_bytes * kind.block_size
        self.rows_at_once = max(1, _PIECE[weight.device.type] // row_size)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([piece.to(dtype, copy=True) for piece in self._pieces()])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, piece.to(x.dtype)) for piece in self._pieces()], dim=-1)

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        return dequantize(self.weight[input_ids], self.kind).to(dtype)

    def _pieces(self) -> Iterator[Tensor]:
        """Some rows after the other, float32, each until the next is asked for."""
        buffer = None
        for rows in self.weight.split(self.rows_at_once):
            piece = dequantize(rows, self.kind, buffer)
            buffer = piece.flatten() if buffer is None else buffer
            yield piece


@dataclass(frozen=True)
class BlockFormat(WeightFormat):
    """
    Attributes:
        is_packed: it is multiplied by, so that it may be laid out for that.
    """

    kind: TensorType
    is_packed: bool = True

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {"weight": Expected((out_features, in_features), (self.kind.name,))}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        weight = tensors["weight"]
        if weight.device.type == "cpu" and self._packs(dtype):
            return gguf_packed.PackedBlockKernel(weight, self.kind)
        return BlockKernel(weight.clone(), self.kind)

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        return self.kernel(tensors, dtype)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        if self._packs(dtype):
            return gguf_packed.num_bytes(self.kind, in_features, out_features)
        return out_features * in_features // self.kind.block_size * self.kind.num_bytes

    def _packs(self, dtype: torch.dtype) -> bool:
        return self.is_packed and dtype == torch.bfloat16 and cpu_kernels.work()


class GGUFMethod(StoredQuantized):
    """The quantization of a GGUF file: each tensor has a type of its own."""

    quant_methods = ("gguf",)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        kind = BLOCK_TYPES.get(tensors["weight"].dtype) if "weight" in tensors else None
        if kind is None:
            return None
        blocks = BlockFormat(kind)
        return ScaledOutputFormat(blocks, "scale") if "scale" in tensors else blocks

    def embedding_format(self, tensor: StoredTensor, is_head: bool) -> WeightFormat | None:
        kind = BLOCK_TYPES.get(tensor.dtype)
        if kind is None:
            return super().embedding_format(tensor, is_head)
        return BlockFormat(kind, is_packed=is_head)
