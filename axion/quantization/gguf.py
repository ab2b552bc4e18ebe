"""Weights as GGUF files have them: kept as stored, and dequantized in pieces when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.hub.gguf import FLOAT_TYPES, TENSOR_TYPES, TensorType
from axion.quantization.base import (
    EmbeddingKernel,
    Expected,
    Kernel,
    StoredQuantized,
    StoredTensor,
    WeightFormat,
)
from axion.quantization.gguf_blocks import dequantize, four_bits
from axion.quantization.integers import ATEN_BLOCK, AtenInt4Kernel, suits_aten

BLOCK_TYPES = {kind.name: kind for kind in TENSOR_TYPES.values() if kind.name not in FLOAT_TYPES}

# Numbers that are dequantized at once.
_PIECE = {"cpu": 2**20, "cuda": 2**24}
# What ATen's kernel for four bits takes, and how many of their numbers share a scale.
_INT4_TYPES = frozenset({"Q4_0", "Q4_1", "Q4_K"})
_INT4_GROUP = 32


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


def _int4_kernel(weight: Tensor, kind: TensorType) -> AtenInt4Kernel:
    """For the rows of blocks that `BlockKernel` takes."""
    packed, pairs = [], []
    for rows in weight.split(ATEN_BLOCK):
        parts = four_bits(rows, kind)
        assert parts is not None
        codes, scale, zero = parts
        packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1))
        pairs.append(torch.stack((scale, zero), dim=-1).bfloat16())
    return AtenInt4Kernel(torch.cat(packed), torch.cat(pairs).transpose(0, 1).contiguous())


@dataclass(frozen=True)
class BlockFormat(WeightFormat):
    kind: TensorType

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {"weight": Expected((out_features, in_features), (self.kind.name,))}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        weight = tensors["weight"]
        in_features = weight.shape[1] // self.kind.num_bytes * self.kind.block_size
        if weight.device.type == "cpu" and self._suits_int4(in_features, len(weight), dtype):
            return _int4_kernel(weight, self.kind)
        return self.embedding_kernel(tensors, dtype)

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        return BlockKernel(tensors["weight"].clone(), self.kind)

    def _suits_int4(self, in_features: int, out_features: int, dtype: torch.dtype) -> bool:
        return self.kind.name in _INT4_TYPES and suits_aten(
            in_features, out_features, dtype, bits=4, group_size=_INT4_GROUP
        )

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        if self._suits_int4(in_features, out_features, dtype):
            return out_features * (in_features // 2 + in_features // _INT4_GROUP * 4)
        return out_features * in_features // self.kind.block_size * self.kind.num_bytes


class GGUFMethod(StoredQuantized):
    """The quantization of a GGUF file: each tensor has a type of its own."""

    quant_methods = ("gguf",)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        kind = BLOCK_TYPES.get(tensors["weight"].dtype) if "weight" in tensors else None
        return BlockFormat(kind) if kind is not None else None

    def embedding_format(self, tensor: StoredTensor, is_head: bool) -> WeightFormat | None:
        kind = BLOCK_TYPES.get(tensor.dtype)
        return super().embedding_format(tensor, is_head) if kind is None else BlockFormat(kind)
