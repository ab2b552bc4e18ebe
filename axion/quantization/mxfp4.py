"""MXFP4, as gpt-oss and DeepSeek-V4 store their experts: 32 numbers of four bits share a power of
two.

The numbers are E2M1, the powers E8M0 (OCP Microscaling Formats Specification 1.0, 5.3 and 5.4). Of
a layer there are `blocks` `[out_features, in_features / 32, 16]`, two numbers in a byte, the low
half first, and `scales` `[out_features, in_features / 32]`; DeepSeek calls the blocks `weight`,
`[out_features, in_features / 2]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.kernels.weights import LowBitWeight, as_words
from axion.quantization.format import WeightFormat
from axion.quantization.kernel import Kernel
from axion.quantization.method import StoredQuantized
from axion.quantization.rows import RowKernel, look_up, pair_table
from axion.quantization.stored import Expected, StoredTensor

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

    def low_bit(self) -> LowBitWeight | None:
        codes, scales = as_words(self.blocks.flatten(1)), self.scales.view(torch.float8_e8m0fnu)
        return LowBitWeight("e2m1", codes, (1, BLOCK), scales)

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


@dataclass(frozen=True)
class Mxfp4PackedFormat(WeightFormat):
    """The same in two dimensions, as DeepSeek and llm-compressor store it.

    Attributes:
        weight, scale: what blocks and scales are called.
    """

    weight: str
    scale: str

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {
            self.weight: Expected((out_features, in_features // 2), ("I8", "U8")),
            self.scale: Expected((out_features, in_features // BLOCK), ("F8_E8M0", "U8")),
        }

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        return {
            "blocks": tensors[self.weight].view(torch.uint8).unflatten(1, (-1, BLOCK // 2)),
            "scales": tensors[self.scale].view(torch.uint8),
        }

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return Mxfp4Kernel(**tensors)


def check_in_blocks(name: str, in_features: int, block: int = BLOCK) -> None:
    """
    Raises:
        ModelLoadError: the inputs of a layer are not whole blocks.
    """
    if in_features % block:
        raise ModelLoadError(
            f"{name[:200]} has {in_features} inputs, which cannot be packed in blocks of {block}."
        )


class Mxfp4Method(StoredQuantized):
    quant_methods = ("mxfp4",)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        if "blocks" not in tensors:
            return None
        check_in_blocks(name, in_features)
        return Mxfp4Format()
