"""Weights of GGUF files, laid out for the kernels that the CPU has for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from axion.hub.gguf import TensorType
from axion.layers import cpu_kernels
from axion.layers.cpu_kernels.layouts import GROUP, LANES, LAYOUTS, Layout
from axion.quantization.gguf_blocks import PARTS, Parts
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
        codes, scales = (torch.cat(parts) for parts in zip(*packed, strict=True))
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
        parts = _unpack(self.codes[tiles, :, :, lanes], _of_columns(self.scales, tiles, lanes, layout), layout)
        out = torch.empty(len(parts.codes), layout.block_size)
        parts.numbers(layout.zero, out)
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
    of_scales = in_features // layout.block_size * layout.block_bytes
    return out_features * (in_features // GROUP * layout.group_bytes + of_scales)


def _pack(weight: Tensor, kind: TensorType) -> tuple[Tensor, Tensor]:
    """Codes and scales, as `axion.layers.cpu_kernels.blocks.product` takes them."""
    layout = LAYOUTS[kind.name]
    parts = PARTS[kind.name](weight.reshape(-1, kind.num_bytes))
    words = parts.codes.view(torch.int32).view(len(weight), -1, _QUADS)
    lines = []
    done = 0
    for bits in layout.planes:
        of_plane = (words >> done & _mask(bits)).unflatten(-1, (-1, bits))
        line = of_plane[..., 0, :].clone()
        for place in range(1, 8 // bits):
            line |= of_plane[..., place, :] << place * bits
        lines.append(line)
        done += bits
    codes = torch.cat(lines, dim=-1).unflatten(0, (-1, LANES)).permute(0, 2, 3, 1)
    halves = [parts.scale] if parts.offset is None else [parts.scale, parts.offset]
    factors = [x for x in (parts.factors, parts.offset_factors) if x is not None]
    of_blocks = [
        x.view(-1, LANES, weight.shape[1] // kind.num_bytes, x.shape[1]).permute(0, 2, 3, 1)
        for x in (*(x.half() for x in halves), *factors)
    ]
    scales = [x.contiguous().view(torch.uint8).flatten(2) for x in of_blocks]
    return codes.contiguous(), torch.cat(scales, dim=-1)


def _mask(bits: int) -> int:
    """The lowest bits of four bytes."""
    return 0x01010101 * (2**bits - 1) if bits < 8 else -1


def _of_columns(scales: Tensor, tiles: Tensor, lanes: Tensor, layout: Layout) -> Tensor:
    """Those of some columns, `[n, num_blocks, block_bytes]`."""
    num_halves = 1 + layout.has_offset
    size = 2 * num_halves * LANES
    halves = scales[..., :size].view(torch.int16).unflatten(-1, (-1, LANES))[tiles, :, :, lanes]
    factors = scales[..., size:].unflatten(-1, (-1, LANES))[tiles, :, :, lanes]
    return torch.cat([halves.contiguous().view(torch.uint8), factors], dim=-1)


def _unpack(codes: Tensor, scales: Tensor, layout: Layout) -> Parts:
    """What `_pack` was given, of some rows.

    Args:
        codes: `[n, in_features / 32, group_bytes / 4]`, int32.
        scales: `[n, num_blocks, block_bytes]`, uint8, those of a column.
    """
    words: Tensor | int = 0
    line, done = 0, 0
    for bits in layout.planes:
        plane = codes[..., line : line + bits]
        parts = [plane >> place * bits & _mask(bits) for place in range(8 // bits)]
        words = words | torch.cat(parts, dim=-1) << done
        line += bits
        done += bits
    assert isinstance(words, Tensor)
    num_halves = 1 + layout.has_offset
    blocks = scales.flatten(0, 1)
    halves = blocks[:, : 2 * num_halves].contiguous().view(torch.float16).float()
    factors = blocks[:, 2 * num_halves :].view(torch.int8).chunk(num_halves, dim=1)
    has_factors = layout.block_size > GROUP
    return Parts(
        words.view(torch.uint8).view(-1, layout.block_size),
        halves[:, :1],
        halves[:, 1:] if layout.has_offset else None,
        factors[0] if has_factors else None,
        factors[1] if has_factors and layout.has_offset else None,
    )
