"""Weights as GGUF files have them: kept as stored, and dequantized in pieces when they are used; or
laid out for a kernel of ATen's, of four bits or of two times four."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.hub.gguf import FLOAT_TYPES, TENSOR_TYPES, TensorType
from axion.quantization.format import WeightFormat
from axion.quantization.gguf_blocks import dequantize, eight_bits, four_bits
from axion.quantization.integers import (
    AtenInt4Kernel,
    AtenInt8Kernel,
    aten_int8_kernel,
    aten_pack,
    piece_rows,
    reads_packed_rows,
    suits_aten,
)
from axion.quantization.kernel import EmbeddingKernel
from axion.quantization.method import StoredQuantized
from axion.quantization.scaled import ScaledOutputFormat
from axion.quantization.stored import Expected, StoredTensor

BLOCK_TYPES = {kind.name: kind for kind in TENSOR_TYPES.values() if kind.name not in FLOAT_TYPES}

# Numbers that are dequantized at once.
_PIECE = {"cpu": 2**20, "cuda": 2**24}
# What ATen's kernel for four bits takes, and how many of their numbers share a scale.
_INT4_GROUPS = {"Q4_0": 32, "Q4_1": 32, "Q4_K": 32}
# What it takes as two times four bits, which is more memory than the blocks. Those of Q8_0 are that
# already; others are rounded, in groups of this size to a third of Q6_K's steps.
_INT8_GROUPS = {
    name: 32 if name == "Q8_0" else 128 for name in BLOCK_TYPES.keys() - _INT4_GROUPS.keys()
}


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
    for rows in _pieces(weight, kind):
        parts = four_bits(rows, kind)
        assert parts is not None
        codes, scale, zero = parts
        packed.append(aten_pack(codes))
        pairs.append(torch.stack((scale, zero), dim=-1).bfloat16())
    return AtenInt4Kernel(torch.cat(packed), torch.cat(pairs).transpose(0, 1).contiguous())


def _int8_kernel(weight: Tensor, kind: TensorType) -> AtenInt8Kernel:
    """For the rows of blocks that `BlockKernel` takes."""
    group_size = _INT8_GROUPS[kind.name]
    return aten_int8_kernel(eight_bits(rows, kind, group_size) for rows in _pieces(weight, kind))


def _pieces(weight: Tensor, kind: TensorType) -> Iterable[Tensor]:
    """Of rows, those that are packed at once."""
    return weight.split(piece_rows(weight.shape[1] // kind.num_bytes * kind.block_size))


@dataclass(frozen=True)
class BlockFormat(WeightFormat):
    """
    Attributes:
        max_bits: where it is laid out for ATen's kernels, these are of at most so many bits.
    """

    kind: TensorType
    max_bits: int = 8

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {"weight": Expected((out_features, in_features), (self.kind.name,))}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        weight = tensors["weight"]
        in_features = weight.shape[1] // self.kind.num_bytes * self.kind.block_size
        if weight.device.type == "cpu":
            bits = self._bits(in_features, len(weight), dtype)
            if bits is not None:
                return (_int4_kernel if bits == 4 else _int8_kernel)(weight, self.kind)
        return BlockKernel(weight.clone(), self.kind)

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        return self.kernel(tensors, dtype)

    def _bits(self, in_features: int, out_features: int, dtype: torch.dtype) -> int | None:
        """Of ATen's kernel for it; None: blocks are kept."""
        bits, groups = (4, _INT4_GROUPS) if self.kind.name in _INT4_GROUPS else (8, _INT8_GROUPS)
        suits = suits_aten(
            in_features, out_features, dtype, bits=4, group_size=groups[self.kind.name]
        )
        return bits if suits and bits <= self.max_bits else None

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        bits = self._bits(in_features, out_features, dtype)
        if bits == 4:
            return out_features * (
                in_features // 2 + in_features // _INT4_GROUPS[self.kind.name] * 4
            )
        if bits == 8:
            return out_features * (in_features + in_features // _INT8_GROUPS[self.kind.name] * 8)
        return out_features * in_features // self.kind.block_size * self.kind.num_bytes


class GGUFMethod(StoredQuantized):
    """The quantization of a GGUF file: each tensor has a type of its own.

    Args:
        is_compact: no layout takes more memory than the file, but for that of four bits.
    """

    quant_methods = ("gguf",)

    def __init__(self, config: Mapping[str, Any], *, is_compact: bool = False) -> None:
        super().__init__(config)
        self._config = config
        self._max_bits = 4 if is_compact else 8

    def compact(self) -> GGUFMethod | None:
        return GGUFMethod(self._config, is_compact=True) if self._max_bits > 4 else None

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        kind = BLOCK_TYPES.get(tensors["weight"].dtype) if "weight" in tensors else None
        if kind is None:
            return None
        blocks = BlockFormat(kind, self._max_bits)
        return ScaledOutputFormat(blocks, "scale") if "scale" in tensors else blocks

    def embedding_format(self, tensor: StoredTensor, is_head: bool) -> WeightFormat | None:
        kind = BLOCK_TYPES.get(tensor.dtype)
        if kind is None:
            return super().embedding_format(tensor, is_head)
        is_packed = is_head and reads_packed_rows(tensor.shape[0])
        return BlockFormat(kind, self._max_bits if is_packed else 0)
