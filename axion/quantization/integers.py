"""Unsigned integers of a few bits, packed; a scale and a zero point for each group of a row.

`weight = (code - zero) * scale`. GPTQ, AWQ and compressed-tensors differ in how they store that.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from axion.layers import cpu_kernels, kernels, onednn
from axion.layers.cpu_kernels.weights import PackedWeight
from axion.layers.kernels.weights import LowBitWeight, as_words
from axion.quantization.format import WeightFormat
from axion.quantization.kernel import Kernel
from axion.quantization.rows import MAX_PIECE, RowKernel, look_up, pair_table
from axion.quantization.stored import StoredTensor

# The groups that ATen's kernel takes, and the multiple that the number of outputs must be.
_ATEN_GROUPS = (32, 64, 128, 256)
_ATEN_ROWS = 16
# So many rows of a weight lie together in it.
ATEN_BLOCK = 64
# Its time is by the row; dequantizing first is faster for more. So it is than the kernel of
# `cpu_kernels` where oneDNN has AMX.
_ATEN_MAX_ROWS = 72
_NIBBLES = pair_table(torch.arange(16).repeat(16), torch.arange(16).repeat_interleave(16))


@dataclass(frozen=True, kw_only=True)
class IntegerFormat(WeightFormat):
    """To override: `expected`, and `unpack` to what `integer_kernel` takes.

    Attributes:
        group_size: inputs of one group; the last of a row may be smaller.
        scales: the number format of scales.
        is_ordered: the inputs of its groups are in order.
    """

    bits: int
    group_size: int
    scales: str
    is_ordered: bool = True

    @property
    def joinable(self) -> bool:  # type: ignore[override]
        return self.is_ordered

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return integer_kernel(**tensors, dtype=dtype, bits=self.bits, group_size=self.group_size)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return num_bytes(
            in_features,
            out_features,
            dtype,
            bits=self.bits,
            group_size=self.group_size,
            scale_bytes=4 if self.scales == "F32" else 2,
            is_ordered=self.is_ordered,
        )


def scale_dtype(scales: StoredTensor | None) -> str:
    """The number format to expect of scales: theirs if it is one that they may have."""
    return scales.dtype if scales and scales.dtype in ("F32", "BF16") else "F16"


def as_bytes(words: Tensor) -> Tensor:
    """`[n, m]` int32, also transposed, to the bytes of its rows, `[n, 4 * m]` uint8."""
    # Of a transposed row of single words torch says that it is contiguous, but has no bytes of it.
    return words.reshape(-1).view(torch.uint8).view(len(words), -1)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Codes `[..., n]` from the bytes `[..., n * bits / 8]` that hold them one after another, the
    lowest bits first; all uint8."""
    if bits == 8:
        return packed
    octets = packed.unflatten(-1, (-1, bits))  # eight codes each
    codes = []
    for index in range(8):
        byte, shift = divmod(index * bits, 8)
        code = octets[..., byte] >> shift
        if shift + bits > 8:
            code = code | octets[..., byte + 1] << (8 - shift)
        codes.append(code & (1 << bits) - 1)
    return torch.stack(codes, -1).flatten(-2)


def pack_nibbles(codes: Tensor) -> Tensor:
    """What `unpack` with four bits undoes."""
    return codes[..., ::2] | codes[..., 1::2] << 4


def num_bytes(
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    *,
    bits: int,
    group_size: int,
    scale_bytes: int,
    is_ordered: bool = True,
) -> int:
    """Bytes that the kernel of `integer_kernel` keeps, on the CPU.

    Args:
        is_ordered: there are no `groups`.
    """
    is_aten = suits_aten(in_features, out_features, dtype, bits, group_size)
    of_group = 2 * dtype.itemsize if is_aten else scale_bytes + 1
    num_groups = out_features * -(-in_features // group_size)
    of_order = 0 if is_ordered and in_features % group_size == 0 else 4 * in_features
    return in_features * out_features * bits // 8 + num_groups * of_group + of_order


def integer_kernel(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    groups: Tensor | None = None,
    *,
    dtype: torch.dtype,
    bits: int,
    group_size: int,
) -> Kernel:
    """What multiplies by such a weight.

    Args:
        codes: as `unpack` takes them, `[out_features, in_features * bits / 8]`.
        scales: `[out_features, num_groups]`.
        zeros: `[out_features, num_groups]`, uint8.
        groups: `[in_features]`, the group of each input, where they are not in order.
        dtype: of hidden states.
    """
    out_features, in_features = len(codes), codes.shape[1] * 8 // bits
    in_order = torch.arange(in_features, device=codes.device) // group_size
    if groups is None and in_features % group_size:
        groups = in_order
    is_aten = suits_aten(in_features, out_features, dtype, bits, group_size)
    if is_aten and codes.device.type == "cpu":
        order = None if groups is None else groups.argsort(stable=True)
        if order is None or torch.equal(groups[order], in_order):
            scales = scales.T.float()
            pairs = torch.stack([scales, (8 - zeros.T.float()) * scales], -1)
            return AtenInt4Kernel(_pack_all(codes, order), pairs.to(dtype), order)
    return IntegerKernel(codes, scales, zeros, groups, bits)


def suits_aten(
    in_features: int, out_features: int, dtype: torch.dtype, bits: int, group_size: int
) -> bool:
    """Whether `AtenInt4Kernel` takes such a weight, and is the fastest for it."""
    return (
        # It computes in float32 and float16 too, and some hundred times slower.
        dtype == torch.bfloat16
        and bits == 4
        and group_size in _ATEN_GROUPS
        and in_features % group_size == 0
        and out_features % _ATEN_ROWS == 0
    )


class IntegerKernel(RowKernel):
    """Dequantizes as it multiplies; on any device, and in any number format."""

    def __init__(
        self, codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor | None, bits: int
    ) -> None:
        super().__init__(codes.shape[1] * 8 // bits, len(codes))
        self.bits = bits
        # Triton's kernels read them row by row, and formats store them by columns, too.
        codes, scales, zeros = (
            x.clone(memory_format=torch.contiguous_format) for x in (codes, scales, zeros)
        )
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.zeros = nn.Parameter(zeros, requires_grad=False)
        self.register_parameter(
            "groups", None if groups is None else nn.Parameter(groups.int(), requires_grad=False)
        )
        self.group_size = self.in_features // scales.shape[1]
        table = _NIBBLES.to(codes.device) if bits == 4 else None
        self.register_buffer("table", table, persistent=False)

    def low_bit(self) -> LowBitWeight | None:
        is_known = self.group_size in (*kernels.LOW_BIT_GROUPS, self.in_features)
        has_words = self.codes.shape[1] % 4 == 0
        if self.bits not in (4, 8) or self.groups is not None or not is_known or not has_words:
            return None
        kind: Literal["uint4", "uint8"] = "uint4" if self.bits == 4 else "uint8"
        codes = as_words(self.codes)
        return LowBitWeight(kind, codes, (1, self.group_size), self.scales, self.zeros)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        codes = self._codes(self.codes[start:end])
        scales, zeros = self.scales[start:end].float(), self.zeros[start:end]
        if self.groups is None:
            codes = codes.unflatten(1, (scales.shape[1], -1))
            return codes.sub_(zeros[..., None]).mul_(scales[..., None]).flatten(1).to(dtype)
        return codes.sub_(zeros[:, self.groups]).mul_(scales[:, self.groups]).to(dtype)

    def _codes(self, packed: Tensor) -> Tensor:
        if self.table is not None:
            return look_up(self.table, packed)
        return unpack(packed, self.bits).float()


class AtenInt4Kernel(RowKernel):
    """Weights of four bits as ATen packs them, in bfloat16 on the CPU.

    They are multiplied by the kernel of `cpu_kernels`, which rounds inputs to eight bits, or else
    by ATen's. Scales and zeros become bfloat16, as the weights would.

    Args:
        packed: the codes as ATen has them, `[out_features, in_features / 2]`.
        scales_and_zeros: `[num_groups, out_features, 2]`; `weight = (code - 8) * scale + zero`.
        order: `[in_features]`, which input each column is for, once groups are in order.
    """

    def __init__(
        self, packed: Tensor, scales_and_zeros: Tensor, order: Tensor | None = None
    ) -> None:
        super().__init__(packed.shape[1] * 2, len(packed), row_multiple=ATEN_BLOCK)
        self.group_size = self.in_features // len(scales_and_zeros)
        self.is_blocked = reads_packed_rows(self.out_features) and cpu_kernels.work()
        if self.is_blocked:  # the kernel reads them in the order of the codes
            blocks = scales_and_zeros.unflatten(1, (-1, ATEN_BLOCK))
            scales_and_zeros = blocks.transpose(0, 1).contiguous()
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales_and_zeros = nn.Parameter(scales_and_zeros, requires_grad=False)
        self.register_parameter(
            "order", None if order is None else nn.Parameter(order.int(), requires_grad=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = x[..., self.order]
        is_many = x.numel() > _ATEN_MAX_ROWS * self.in_features
        if self.is_blocked:
            if not cpu_kernels.work() or (is_many and onednn.has_amx()):
                return super().forward(x)
            low_bit = cpu_kernels.load("low_bit")
            return low_bit.int4_product(x, self.packed, self.scales_and_zeros)
        if is_many and reads_packed_rows(self.out_features):
            return super().forward(x)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.reshape(-1, self.in_features).contiguous(),
            self.packed,
            self.group_size,
            self.scales_and_zeros,
        )
        return out.view(*x.shape[:-1], self.out_features)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows of the weight, whose columns are in the order of its groups, as a transposed view:
        a column's codes lie side by side, and so do the scales that it is multiplied by."""
        blocks = self.blocks()[start // ATEN_BLOCK : end // ATEN_BLOCK].transpose(0, 1)
        columns = self.scales_and_zeros.new_empty(self.in_features, end - start)
        halves = columns.view(self.in_features, -1, 2, ATEN_BLOCK // 2)
        halves[:, :, 0] = (blocks & 15).sub_(8).view(torch.int8)
        halves[:, :, 1] = (blocks >> 4).sub_(8).view(torch.int8)
        if self.is_blocked:
            of_blocks = self.scales_and_zeros[start // ATEN_BLOCK : end // ATEN_BLOCK]
            pairs = of_blocks.transpose(0, 1).flatten(1, 2)
        else:
            pairs = self.scales_and_zeros[:, start:end]
        scales, zeros = pairs.permute(2, 0, 1).contiguous()[:, :, None]
        groups = columns.view(-1, self.group_size, end - start)
        torch.addcmul(zeros, groups, scales, out=groups)
        return columns.T.to(dtype)

    def packed_weight(self) -> PackedWeight | None:
        if not self.is_blocked or self.order is not None:
            return None
        max_rows = _ATEN_MAX_ROWS if onednn.has_amx() else sys.maxsize
        sizes = self.in_features, self.out_features, self.group_size
        return PackedWeight("int4", self.packed, self.scales_and_zeros, *sizes, max_rows)

    def blocks(self) -> Tensor:
        """`packed` as `[out_features / 64, in_features, 32]`."""
        assert _knows_layout(), "`reads_packed_rows` says so before"
        return self.packed.view(-1, self.in_features, ATEN_BLOCK // 2)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        if reads_packed_rows(self.out_features):
            return super().dequantize(dtype)
        # The layout is ATen's own; a product with ones and zeros is exact.
        return self(torch.eye(self.in_features, dtype=self.scales_and_zeros.dtype)).T.to(dtype)


def reads_packed_rows(out_features: int) -> bool:
    """Whether rows of a weight that ATen has packed can be read."""
    return out_features % ATEN_BLOCK == 0 and _knows_layout()


@cache
def _knows_layout() -> bool:
    """Whether ATen packs as `AtenInt4Kernel.rows` reads, which depends on the CPU: 64 rows a block,
    of which each column is 32 bytes that hold the first rows and, in their upper halves, the
    others."""
    codes = torch.arange(2 * ATEN_BLOCK * 4).view(-1, 4).remainder(15).to(torch.uint8)
    first, second = codes.view(2, 2, ATEN_BLOCK // 2, 4).unbind(1)
    expected = (first | second << 4).transpose(1, 2)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return torch.equal(packed.flatten(), expected.flatten())


def piece_rows(in_features: int) -> int:
    """Rows of a weight that are packed at once."""
    return max(MAX_PIECE // in_features // ATEN_BLOCK, 1) * ATEN_BLOCK


def aten_pack(codes: Tensor) -> Tensor:
    """Codes `[rows, in_features]`, uint8, as ATen has them, `[rows, in_features / 2]`."""
    if not reads_packed_rows(len(codes)):
        packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        return packed
    # What ATen does, in a fraction of its time.
    first, others = codes.view(-1, 2, ATEN_BLOCK // 2, codes.shape[1]).unbind(1)
    return (first | others << 4).transpose(1, 2).reshape(len(codes), -1)


def _pack_all(codes: Tensor, order: Tensor | None) -> Tensor:
    pieces = []
    for piece in codes.split(piece_rows(2 * codes.shape[1])):
        values = unpack(piece, 4)
        pieces.append(aten_pack(values if order is None else values[:, order]))
    return torch.cat(pieces)
