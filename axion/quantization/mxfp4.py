"""MXFP4, as gpt-oss stores its experts: 32 numbers of four bits share a power of two.

The numbers are E2M1, the powers E8M0 (OCP Microscaling Formats Specification 1.0, 5.3 and 5.4). Of
a layer there are `blocks` `[out_features, in_features / 32, 16]`, two numbers in a byte, the low
half first, and `scales` `[out_features, in_features / 32]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.quantization.base import (
    Expected,
    Kernel,
    StoredQuantized,
    StoredTensor,
    WeightFormat,
)
from axion.quantization.rows import RowKernel, look_up, pair_table

BLOCK = 32
_POSITIVE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_NUMBERS = torch.tensor(_POSITIVE + [-number for number in _POSITIVE])
E2M1_PAIRS = pair_table(_NUMBERS.repeat(16), _NUMBERS.repeat_interleave(16))
"""For `look_up`: the two numbers of a byte, that of its low half first."""


class Mxfp4Kernel(RowKernel):
    """Dequantizes as it multiplies.

    Args:
        blocks: `[out_features, in_features / 32, 16]`, uint8.
        scales: `[out_features, in_features / 32]`, uint8.
    """

    def __init__(self, blocks: Tensor, scales: Tensor) -> None:
        super().__init__(scales.shape[1] * BLOCK, len(scales))
        self.blocks = nn.Parameter(blocks.clone(), requires_grad=False)
        self.scales = nn.Parameter(scales.clone(), requires_grad=False)
        self.register_buffer("table", E2M1_PAIRS.to(blocks.device), persistent=False)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        numbers = look_up(self.table, self.blocks[start:end])
        powers = self.scales[start:end].view(torch.float8_e8m0fnu).float()
        return numbers.mul_(powers[..., None]).flatten(1).to(dtype)


@dataclass(frozen=True)
class Mxfp4Format(WeightFormat):
    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        num_blocks = in_features // BLOCK
        return {
            "blocks": Expected((out_features, num_blocks, BLOCK // 2), ("U8",)),
            "scales": Expected((out_features, num_blocks), ("U8",)),
        }

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return Mxfp4Kernel(**tensors)


class Mxfp4Method(StoredQuantized):
    quant_methods = ("mxfp4",)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        if "blocks" not in tensors:
            return None
        if in_features % BLOCK:
            raise ModelLoadError(
                f"{name} has {in_features} inputs, which MXFP4 cannot pack in blocks of {BLOCK}."
            )
        return Mxfp4Format()
