"""Each row multiplied by its expert's weight, or all by the only one. Only on a few GPUs can
torch's own product do without waiting for the device, to learn where each expert's rows end; and
none has one of weights of a few bits that reads them as they are stored, which is what decoding
waits for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from axion.layers.kernels import num_multiprocessors
from axion.layers.kernels.low_bit import constants, low_bit_tile
from axion.layers.kernels.weights import LowBitExperts, LowBitWeight

# By the rows that an expert has on average at most: rows, outputs and bytes of inputs that a
# program multiplies at once, and its warps. Where there are few rows the time is that of reading
# weights and making numbers of them, which each tile of rows does anew; elsewhere that of tensor
# cores. A single row is multiplied without these, by numbers of float32, which saves rounding them.
_TILES = {
    1: (1, 16, 1024, 4),
    16: (16, 64, 256, 4),
    64: (64, 128, 128, 4),
    None: (128, 128, 128, 8),
}
# So many tiles of weights are under way at once. Few rows wait for the memory's latency, and those
# of a few bits are small.
_STAGES, _LOW_BIT_STAGES = 3, 5
# Programs for each multiprocessor, among which inputs are divided where there are fewer; each has
# so many tiles of them at least.
_NUM_WAVES, _MIN_STEPS = 2, 4
_BLOCK = 1024


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
    if isinstance(weight, LowBitExperts):
        return _product(x, weight.first, weight.offsets, ends)
    return _product(x, weight if weight.stride(-1) == 1 else weight.contiguous(), None, ends)


def low_bit_product(x: Tensor, weight: LowBitWeight) -> Tensor:
    """`x @ weight.T`, as `grouped_product` computes it, `[..., in_features]` to
    `[..., out_features]`."""
    out = _product(x.reshape(-1, x.shape[-1]), weight, None, None)
    return out.view(*x.shape[:-1], out.shape[-1])


def _product(
    x: Tensor, weight: Tensor | LowBitWeight, offsets: Tensor | None, ends: Tensor | None
) -> Tensor:
    num_rows, in_features = x.shape
    num_experts = 1 if ends is None else len(ends)
    of_expert = triton.cdiv(num_rows, num_experts)
    is_low_bit = isinstance(weight, LowBitWeight)
    if x.dtype == torch.float32:  # larger tiles without tensor cores need too many registers
        of_expert = min(of_expert, 16)
    if not is_low_bit:
        of_expert = max(of_expert, 2)
    rows, outputs, num_bytes, num_warps = next(
        tile for most, tile in _TILES.items() if most is None or of_expert <= most
    )
    inputs = num_bytes // x.element_size()
    x = x if x.stride(-1) == 1 else x.contiguous()
    if isinstance(weight, LowBitWeight):
        tensors, options = weight.tensors, constants(weight)
        out_features, row_size = weight.codes.shape
        strides = 0, row_size
    else:
        tensors = [weight, None, None, None, None]
        options = {"KIND": "plain", "BITS": 0, "SCALE_KIND": "", "BLOCK_OUTPUTS": 1}
        options["BLOCK_INPUTS"] = 1
        _, out_features, _ = weight.shape
        strides = weight.stride()[:2]
    out = x.new_empty(num_rows, out_features)
    # As many tiles as there can be: the last of each expert may be partly empty.
    num_tiles = min(num_rows, (num_rows - 1) // rows + num_experts)
    num_parts = triton.cdiv(out_features, outputs)
    num_splits = _num_splits(num_tiles * num_parts, triton.cdiv(in_features, inputs), x.device)
    parts = out
    if num_splits > 1:
        parts = out.new_empty((num_splits, *out.shape), dtype=torch.float32)
    _grouped[(num_tiles, num_parts, num_splits)](
        parts,
        x,
        *tensors,
        offsets,
        ends,
        num_rows,
        num_experts,
        in_features,
        out_features,
        x.stride(0),
        *strides,
        **options,
        EXPERTS=triton.next_power_of_2(num_experts),
        ROWS=rows,
        OUTPUTS=outputs,
        INPUTS=inputs,
        num_warps=num_warps,
        num_stages=_LOW_BIT_STAGES if is_low_bit and rows == 16 else _STAGES,
    )
    if num_splits > 1:
        _sum[(triton.cdiv(out.numel(), _BLOCK),)](out, parts, out.numel(), num_splits, BLOCK=_BLOCK)
    return out


def _num_splits(num_programs: int, num_steps: int, device: torch.device) -> int:
    """Among how many programs the inputs of a tile are divided.

    Args:
        num_programs: without splitting.
        num_steps: tiles of inputs.
    """
    wanted = _NUM_WAVES * num_multiprocessors(device) // max(1, num_programs)
    return max(1, min(wanted, num_steps // _MIN_STEPS))


@triton.jit(do_not_specialize=["num_rows"])
def _grouped(
    out,
    x,
    weight,
    scales,
    zeros,
    factors,
    numbers,
    offsets,
    ends,
    num_rows,
    num_experts,
    in_features,
    out_features,
    x_stride,
    expert_stride,
    output_stride,
    KIND: tl.constexpr,
    BITS: tl.constexpr,
    SCALE_KIND: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Some outputs of a tile: of rows that follow each other and have one expert."""
    tile = tl.program_id(0)
    first_row = tile * ROWS
    end_row = num_rows
    if ends is not None:
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
        end_row = tl.sum(tl.where(is_own, end, 0), 0)
        if offsets is None:
            weight += expert.to(tl.int64) * expert_stride
        else:
            # Rows of codes are read in vectors, wherever an expert's begin.
            offsets += expert
            weight += tl.multiple_of(tl.load(offsets), 4)
            if scales is not None:
                offsets += num_experts
                scales += tl.load(offsets)
            if zeros is not None:
                offsets += num_experts
                zeros += tl.load(offsets)
            if factors is not None:
                offsets += num_experts
                factors += tl.load(offsets)
            if numbers is not None:
                offsets += num_experts
                numbers += tl.load(offsets)
    row = first_row + tl.arange(0, ROWS)
    is_row = row < end_row
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = n < out_features
    k = tl.arange(0, INPUTS)
    x += row.to(tl.int64)[:, None] * x_stride + k[None, :]
    if KIND == "plain":
        weight += n.to(tl.int64)[None, :] * output_stride + k[:, None]
    num_steps = tl.cdiv(tl.cdiv(in_features, INPUTS), tl.num_programs(2))
    first = tl.program_id(2) * num_steps * INPUTS
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    if ROWS == 1:
        total = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    for start in range(first, tl.minimum(first + num_steps * INPUTS, in_features), INPUTS):
        is_input = start + k < in_features
        left = tl.load(x + start, mask=is_row[:, None] & is_input[None, :], other=0.0)
        if KIND == "plain":
            right = tl.load(weight + start, mask=is_input[:, None] & is_output[None, :], other=0.0)
        else:
            right = low_bit_tile(
                weight,
                scales,
                zeros,
                numbers,
                n,
                start,
                in_features,
                out_features,
                output_stride,
                KIND,
                BITS,
                SCALE_KIND,
                BLOCK_OUTPUTS,
                BLOCK_INPUTS,
                INPUTS,
            )
        if ROWS == 1:
            total += right * left.to(tl.float32)
        else:
            if KIND != "plain":
                right = tl.trans(right.to(left.dtype))
            total = tl.dot(left, right, total, input_precision="ieee")
    if ROWS == 1:
        total = tl.sum(total, 1)[None, :]
    if factors is not None:
        total *= tl.load(factors + n, mask=is_output, other=0.0)[None, :]
    # Of the last split, of few inputs, there may be nothing: then it is zero.
    out += tl.program_id(2).to(tl.int64) * num_rows * out_features
    tl.store(
        out + row.to(tl.int64)[:, None] * out_features + n[None, :],
        total.to(out.dtype.element_ty),
        mask=is_row[:, None] & is_output[None, :],
    )


@triton.jit
def _sum(out, parts, size, num_parts, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(num_parts):
        total += tl.load(parts + at, mask=at < size, other=0.0)
        parts += size
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)
