"""Weights of GGUF files, laid out for the kernels that the CPU has for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.hub.gguf import TensorType
from axion.layers import cpu_kernels
from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.layouts import GROUP, LAYOUTS, Layout
from axion.layers.cpu_kernels.weights import PackedWeight
from axion.quantization.gguf_bits import Parts
from axion.quantization.gguf_blocks import parts
from axion.quantization.kernel import EmbeddingKernel
from axion.quantization.rows import MAX_PIECE, RowKernel

_QUADS = GROUP // 4  # words, of four codes each


class PackedBlockKernel(RowKernel, EmbeddingKernel):
    """Multiplies by a weight that stays at its bits, in bfloat16 on the CPU. Inputs are rounded to
    eight bits.

    Args:
        weight: rows of blocks, uint8, `[out_features, in_features / block_size * num_bytes]`.
    """

    def __init__(self, weight: Tensor, kind: TensorType) -> None:
        in_features = weight.shape[1] // kind.num_bytes * kind.block_size
        super().__init__(in_features, len(weight))
        self.kind = kind
        weight = F.pad(weight, (0, 0, 0, -len(weight) % LANES))
        pieces = weight.split(max(MAX_PIECE // in_features // LANES, 1) * LANES)
        packed = [_pack(piece, kind) for piece in pieces]
        codes, scales = (torch.cat(tensors) for tensors in zip(*packed, strict=True))
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not cpu_kernels.run_on(x):
            return super().forward(x)
        from axion.layers.cpu_kernels.blocks import product

        rows = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        out = product(rows.contiguous(), self.codes, self.scales, self.kind.name)
        if self.out_features % LANES:
            out = out[:, : self.out_features]
        return out if x.ndim == 2 else out.unflatten(0, x.shape[:-1])

    def packed_weight(self) -> PackedWeight | None:
        if self.out_features % LANES:
            return None
        sizes = self.in_features, self.out_features
        return PackedWeight(self.kind.name, self.codes, self.scales, *sizes, 0, sys.maxsize)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.embed(torch.arange(start, end), dtype)

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        layout = LAYOUTS[self.kind.name]
        spans = _unpack(self.codes, self.scales, input_ids, layout)
        out = torch.empty(len(spans.codes), layout.span)
        spans.weights(layout, out)
        return out.view(len(input_ids), self.in_features).to(dtype)


def num_bytes(kind: TensorType, in_features: int, out_features: int) -> int:
    """Bytes that `PackedBlockKernel` keeps."""
    layout = LAYOUTS[kind.name]
    of_codes = in_features // GROUP * layout.group_bytes
    of_scales = in_features // layout.span * layout.span_bytes
    return -(-out_features // LANES) * LANES * (of_codes + of_scales)


def _pack(weight: Tensor, kind: TensorType) -> tuple[Tensor, Tensor]:
    """Codes and scales, as `axion.layers.cpu_kernels.blocks.product` takes them."""
    layout = LAYOUTS[kind.name]
    codes, *scales = parts(weight.reshape(-1, kind.num_bytes), kind)
    if layout.numbers:
        ranks = torch.zeros(256, dtype=torch.uint8)
        ranks[_table(layout).int()] = torch.arange(len(layout.numbers), dtype=torch.uint8)
        codes = ranks.index_select(0, codes.flatten().int())
    words = codes.view(torch.int32).view(len(weight), -1, _QUADS)
    planes = []
    first_bit = 0
    for bits in layout.planes:
        pieces = (words >> first_bit & _mask(bits)).split(bits, dim=-1)
        planes.append(sum(piece << bits * place for place, piece in enumerate(pieces)))
        first_bit += bits
    num_spans = words.shape[1] * GROUP // layout.span
    of_16_bits = torch.bfloat16 if layout.is_bfloat16 else torch.float16
    of_spans = [
        _beside(x.to(of_16_bits) if x.is_floating_point() else x, len(weight), num_spans)
        for x in scales
        if x is not None
    ]
    return (
        _beside(torch.cat(planes, dim=-1), len(weight), words.shape[1]),
        torch.cat([x.view(torch.uint8).flatten(2) for x in of_spans], dim=-1),
    )


def _beside(numbers: Tensor, num_rows: int, num_parts: int) -> Tensor:
    """Rows of equal parts, to `[num_rows / 16, num_parts, size of a part, 16]`."""
    size = numbers.numel() // num_rows // num_parts
    return numbers.view(-1, LANES, num_parts, size).permute(0, 2, 3, 1).contiguous()


def _unpack(codes: Tensor, scales: Tensor, rows: Tensor, layout: Layout) -> Parts:
    """What `_pack` was given of some rows, in spans."""
    tiles, lanes = rows // LANES, rows % LANES
    lines = codes[tiles, :, :, lanes].split(layout.planes, dim=-1)
    words = []
    first_bit = 0
    for bits, plane in zip(layout.planes, lines, strict=True):
        pieces = [plane >> bits * place & _mask(bits) for place in range(8 // bits)]
        words.append(torch.cat(pieces, dim=-1) << first_bit)
        first_bit += bits
    whole = sum(words[1:], words[0]).view(torch.uint8)
    if layout.numbers:
        whole = _table(layout).index_select(0, whole.flatten().int())

    num_kinds = 1 + layout.has_offset
    num_halves, num_factors = layout.num_halves * num_kinds, layout.num_factors * num_kinds
    halves, factors = scales.split((2 * LANES * num_halves, LANES * num_factors), dim=-1)
    of_16_bits = torch.bfloat16 if layout.is_bfloat16 else torch.float16
    halves = halves.view(of_16_bits).unflatten(-1, (num_halves, LANES))[tiles, :, :, lanes]
    scale, *offset = halves.flatten(0, 1).float().split(layout.num_halves, dim=-1)
    of_groups: Iterable[Tensor] = ()
    if num_factors:
        factors = factors.view(torch.int8).unflatten(-1, (num_factors, LANES))[tiles, :, :, lanes]
        of_groups = factors.flatten(0, 1).split(layout.num_factors, dim=-1)
    return Parts(whole.view(len(scale), -1), scale, *(offset or [None]), *of_groups)


def _table(layout: Layout) -> Tensor:
    """What each code of the kernel stands for, as those in `Parts`."""
    return (torch.tensor(layout.numbers) + layout.bias).to(torch.uint8)


def _mask(bits: int) -> int:
    """The lowest bits of four bytes."""
    return 0x01010101 * (2**bits - 1) if bits < 8 else -1
