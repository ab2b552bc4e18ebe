"""Each row multiplied by its expert's weight. Only on a few GPUs can torch's own product do without
waiting for the device, to learn where each expert's rows end."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from axion.layers.kernels.low_bit import low_bit_tile
from axion.layers.kernels.weights import LowBitExperts

# Rows, outputs and bytes of inputs that a program multiplies at once: where each expert has few
# rows the time is that of reading weights, elsewhere that of tensor cores.
_FEW, _MANY = (16, 64, 256), (64, 128, 128)
# So many tiles of weights are under way at once. Few rows wait for the memory's latency, and those
# of a few bits are small.
_STAGES, _LOW_BIT_STAGES = 3, 5


def grouped_product(x: Tensor, weight: Tensor | LowBitExperts, ends: Tensor) -> Tensor:
    """`x @ weight[expert].T` for the rows of each expert, summed in float32.

    Args:
        x: `[num_rows, in_features]`, sorted by expert.
        weight: `[num_experts, out_features, in_features]`. Of a few bits it is read as it is
            stored, and rounded to the number format of `x` as it is multiplied by.
        ends: `[num_experts]` int32, where each expert's rows end.

    Returns:
        `[num_rows, out_features]`.
    """
    num_rows, in_features = x.shape
    num_experts = len(ends)
    has_few = num_rows <= _MANY[0] * num_experts // 2
    rows, outputs, num_bytes = _FEW if has_few else _MANY
    x = x if x.stride(-1) == 1 else x.contiguous()
    if isinstance(weight, LowBitExperts):
        kind, codes, scales, zeros, block = weight.first
        block = block[0], triton.next_power_of_2(block[1])
        offsets, strides, out_features = weight.offsets, (0, 0), len(codes)
    else:
        codes = weight if weight.stride(-1) == 1 else weight.contiguous()
        kind, scales, zeros, block, offsets = "plain", None, None, (1, 1), None
        strides, out_features = codes.stride()[:2], codes.shape[1]
    out = x.new_empty(num_rows, out_features)
    # As many tiles as there can be: the last of each expert may be partly empty.
    num_tiles = min(num_rows, num_rows // rows + num_experts)
    _grouped[(num_tiles, triton.cdiv(out_features, outputs))](
        out,
        x,
        codes,
        scales,
        zeros,
        offsets,
        ends,
        num_experts,
        in_features,
        out_features,
        x.stride(0),
        *strides,
        KIND=kind,
        BLOCK_OUTPUTS=block[0],
        BLOCK_INPUTS=block[1],
        EXPERTS=triton.next_power_of_2(num_experts),
        ROWS=rows,
        OUTPUTS=outputs,
        INPUTS=num_bytes // x.element_size(),
        num_stages=_LOW_BIT_STAGES if has_few and kind != "plain" else _STAGES,
    )
    return out


@triton.jit
def _grouped(
    out,
    x,
    weight,
    scales,
    zeros,
    offsets,
    ends,
    num_experts,
    in_features,
    out_features,
    x_stride,
    expert_stride,
    output_stride,
    KIND: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Some outputs of a tile: of rows that follow each other and have one expert."""
    tile = tl.program_id(0)
    e = tl.arange(0, EXPERTS)
    end = tl.load(ends + e, mask=e < num_experts, other=0)
    begin = tl.load(ends + e - 1, mask=(e > 0) & (e < num_experts), other=0)
    num_tiles = tl.cdiv(end - begin, ROWS)
    last = tl.cumsum(num_tiles, 0)
    expert = tl.sum((last <= tile).to(tl.int32), 0)
    if expert >= num_experts:
        return
    is_own = e == expert
    first_row = tl.sum(tl.where(is_own, begin + (tile - last + num_tiles) * ROWS, 0), 0)
    row = first_row + tl.arange(0, ROWS)
    is_row = row < tl.sum(tl.where(is_own, end, 0), 0)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = n < out_features
    k = tl.arange(0, INPUTS)
    x += row.to(tl.int64)[:, None] * x_stride + k[None, :]
    if KIND == "plain":
        weight += expert.to(tl.int64) * expert_stride + n[None, :] * output_stride + k[:, None]
    else:
        # Rows of codes are read in vectors, wherever an expert's begin.
        weight += tl.multiple_of(tl.load(offsets + expert), 16)
        scales += tl.load(offsets + num_experts + expert)
        if zeros is not None:
            zeros += tl.load(offsets + 2 * num_experts + expert)
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for start in range(0, in_features, INPUTS):
        is_input = start + k < in_features
        left = tl.load(x + start, mask=is_row[:, None] & is_input[None, :], other=0.0)
        if KIND == "plain":
            right = tl.load(weight + start, mask=is_input[:, None] & is_output[None, :], other=0.0)
        else:
            right = low_bit_tile(
                weight,
                scales,
                zeros,
                n,
                start,
                in_features,
                out_features,
                KIND,
                BLOCK_OUTPUTS,
                BLOCK_INPUTS,
                INPUTS,
            )
            right = tl.trans(right.to(left.dtype))
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(
        out + row.to(tl.int64)[:, None] * out_features + n[None, :],
        total.to(out.dtype.element_ty),
        mask=is_row[:, None] & is_output[None, :],
    )
