"""Weights of GGUF files, laid out for the kernels that the CPU has for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from axion.hub.gguf import TensorType
from axion.layers import cpu_kernels
from axion.layers.cpu_kernels.layouts import GROUP, LANES, LAYOUTS, Layout
from axion.quantization.gguf_bits import Parts
from axion.quantization.gguf_blocks import parts
from axion.quantization.kernel import EmbeddingKernel
from axion.quantization.rows import MAX_PIECE, RowKernel

_QUADS = GROUP // 4  # words of four codes


class PackedBlockKernel(RowKernel, EmbeddingKernel):
    """Multiplies by a weight that stays at its bits, in bfloat16 on the CPU. Inputs are rounded to
    eight bits.

    Args:
        weight: rows of blocks, uint8, `[out_features, in_features / block_size * num_bytes]`.
    """

    def __init__(self, weight: Tensor, kind: TensorType) -> None:
        in_features = weight.shape[1] // kind.num_bytes * kind.block_size
        super().__init__(in_features, len(weight))
        self.name = kind.name
        pieces = weight.split(max(MAX_PIECE // in_features // LANES, 1) * LANES)
        packed = [_pack(piece, kind) for piece in pieces]
        codes, scales = (torch.cat(tensors) for tensors in zip(*packed, strict=True))
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not cpu_kernels.run_on(x):
            return super().forward(x)
        from axion.layers.cpu_kernels.blocks import product

        rows = x.reshape(-1, self.in_features).contiguous()
        out = product(rows, self.codes, self.scales, self.name)
        return out.view(*x.shape[:-1], self.out_features)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        return self.embed(torch.arange(start, end), dtype)

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        layout = LAYOUTS[self.name]
        tiles, lanes = input_ids // LANES, input_ids % LANES
        # 16 bits of scales, and 8 of factors, of which the columns lie beside each other.
        size = 2 * LANES * layout.num_halves * (1 + layout.has_offset)
        halves = self.scales[..., :size].view(torch.int16).unflatten(-1, (-1, LANES))
        factors = self.scales[..., size:].unflatten(-1, (layout.num_factors * (1 + layout.has_offset), LANES))
        codes, halves, factors = (x[tiles, :, :, lanes] for x in (self.codes, halves, factors))
        unpacked = _unpack(codes, halves.flatten(0, 1), factors.flatten(0, 1), layout)
        out = torch.empty(len(unpacked.codes), layout.span)
        unpacked.weights(layout, out)
        return out.view(len(input_ids), -1).to(dtype)


def suits(kind: TensorType, out_features: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for such a weight on the CPU."""
    return (
        kind.name in LAYOUTS
        and dtype == torch.bfloat16
        and out_features % LANES == 0
        and cpu_kernels.work()
    )


def num_bytes(kind: TensorType, in_features: int, out_features: int) -> int:
    """Bytes that `PackedBlockKernel` keeps."""
    layout = LAYOUTS[kind.name]
    of_scales = in_features // layout.span * layout.span_bytes
    return out_features * (in_features // GROUP * layout.group_bytes + of_scales)


def _pack(weight: Tensor, kind: TensorType) -> tuple[Tensor, Tensor]:
    """Codes and scales, as `axion.layers.cpu_kernels.blocks.product` takes them."""
    layout = LAYOUTS[kind.name]
    codes, *scales = parts(weight.reshape(-1, kind.num_bytes), kind)
    if layout.numbers:
        codes = _ranks(layout)[codes.int()]
    words = codes.view(torch.int32).view(len(weight), -1, _QUADS)
    planes = []
    done = 0
    for bits in layout.planes:
        pieces = (words >> done & _mask(bits)).split(bits, dim=-1)
        plane = pieces[0]
        for place, piece in enumerate(pieces[1:], 1):
            plane |= piece << place * bits
        planes.append(plane)
        done += bits
    dtype = torch.bfloat16 if layout.is_bfloat16 else torch.float16
    num_spans = words.shape[1] * GROUP // layout.span
    of_spans = [
        _beside(x.to(dtype) if x.is_floating_point() else x, len(weight), num_spans)
        for x in scales
        if x is not None
    ]
    of_codes = _beside(torch.cat(planes, dim=-1), len(weight), words.shape[1])
    return of_codes, torch.cat([x.view(torch.uint8).flatten(2) for x in of_spans], dim=-1)


def _beside(numbers: Tensor, num_rows: int, num_parts: int) -> Tensor:
    """`num_parts` of so many rows, to `[num_rows / 16, num_parts, size of a part, 16]`."""
    return numbers.view(-1, LANES, num_parts, numbers.numel() // num_rows // num_parts).permute(
        0, 2, 3, 1
    ).contiguous()


def _ranks(layout: Layout) -> Tensor:
    """What the kernel's code of each number is."""
    ranks = torch.zeros(256, dtype=torch.uint8)
    ranks[torch.tensor(layout.numbers) + layout.bias] = torch.arange(len(layout.numbers)).byte()
    return ranks


def _unpack(codes: Tensor, halves: Tensor, factors: Tensor, layout: Layout) -> Parts:
    """What `_pack` makes of some spans of inputs.

    Args:
        codes: `[n, span / 32, group_bytes / 4]`, int32.
        halves: `[n, number of scales and offsets in 16 bits]`, int16.
        factors: `[n, number of factors]`, uint8.
    """
    quads = []
    done = 0
    for plane, bits in zip(codes.split(layout.planes, dim=-1), layout.planes, strict=True):
        pieces = [plane >> place * bits & _mask(bits) for place in range(8 // bits)]
        quads.append(torch.cat(pieces, dim=-1) << done)
        done += bits
    whole = sum(quads[1:], quads[0]).view(torch.uint8)
    if layout.numbers:
        whole = (torch.tensor(layout.numbers) + layout.bias).byte()[whole.int()]
    dtype = torch.bfloat16 if layout.is_bfloat16 else torch.float16
    scale, *offset = halves.view(dtype).float().split(layout.num_halves, dim=1)
    all_factors = factors.view(torch.int8).split(layout.num_factors, dim=1) if layout.num_factors else []
    return Parts(
        whole.view(len(halves), -1),
        scale,
        *(offset or [None]),
        *all_factors,
    )


def _mask(bits: int) -> int:
    """The lowest bits of four bytes."""
    return 0x01010101 * (2**bits - 1) if bits < 8 else -1
