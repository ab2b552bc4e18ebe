"""Weights stored as E4M3, by DeepSeek with a scale for each block of 128 x 128 (arXiv:2412.19437,
section 3.3), by others with one for each output or for all; or for 32 inputs of one output, a power
of two (MXFP8, OCP Microscaling Formats Specification 1.0).

`weight` is what is stored, and beside it `weight_scale_inv` or `weight_scale`, which it is
multiplied by. Scales that were measured for inputs or for the KV cache are not needed: inputs are
rounded by their own largest number where they are rounded at all. With `expert_dtype` fp4 the
experts are MXFP4 (DeepSeek-V4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.float8 import Float8Kernel
from axion.quantization.format import WeightFormat
from axion.quantization.kernel import Kernel
from axion.quantization.method import StoredQuantized
from axion.quantization.mxfp4 import Mxfp4PackedFormat, check_in_blocks
from axion.quantization.stored import FLOATS, Expected, StoredTensor

E4M3 = "F8_E4M3"
NOT_NEEDED = (r".*\.(input|activation|output|[qkv]|kv)_scale(_ub)?",)
_SCALES = ("weight_scale_inv", "weight_scale", "scale_inv", "scale")
# Powers of two; bytes are what others have stored them as.
_POWERS = ("F8_E8M0", "U8")
_MX_BLOCK = (1, 32)
# Of the scales that ModelOpt stores in four dimensions, two of which are 1.
MODELOPT_BLOCK = (128, 128)


@dataclass(frozen=True)
class Float8Format(WeightFormat):
    """
    Attributes:
        scale: what the scales are called.
        num_dims: of the tensor of scales; one of less than two may be left out.
        block: rows and columns of the weight that share a scale; 0: all.
        is_whole: the number of rows is a multiple of the block's.
        has_powers: scales are powers of two.
    """

    scale: str
    num_dims: int
    block: tuple[int, int]
    is_whole: bool
    has_powers: bool

    @classmethod
    def of(
        cls, name: str, scale: StoredTensor | None, block: tuple[int, int] | None, out_features: int
    ) -> Float8Format:
        """The format of a weight with these scales."""
        shape = (out_features, 1) if scale is None else scale.shape
        dtype = "F32" if scale is None else scale.dtype
        if len(shape) == 4:
            block = MODELOPT_BLOCK
        elif dtype == "U8":
            block = _MX_BLOCK
        elif len(shape) < 2 or block is None:
            block = (0, 0) if shape in ((), (1,), (1, 1)) else (1, 0)
        is_whole = not block[0] or out_features % block[0] == 0
        return cls(name, len(shape), block, is_whole, dtype in _POWERS)

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        rows, columns = grid = self._grid(in_features, out_features)
        shape = (rows, 1, columns, 1) if self.num_dims == 4 else grid[: self.num_dims]
        return {
            "weight": Expected((out_features, in_features), (E4M3,)),
            self.scale: Expected(shape, _POWERS if self.has_powers else FLOATS),
        }

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        scale = tensors[self.scale].reshape(self._grid(in_features, out_features))
        scale = scale.view(torch.float8_e8m0fnu).bfloat16() if self.has_powers else scale.float()
        if not self.is_whole:
            scale = scale.repeat_interleave(self.block[0], 0)[:out_features]
        return {
            "codes": tensors["weight"],
            "scale": scale if self.block[0] else scale.expand(out_features, 1),
        }

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        codes = tensors["codes"]
        num_rows, num_columns = self.block
        block = (num_rows if num_rows and self.is_whole else 1, num_columns or codes.shape[1])
        return Float8Kernel(codes, tensors["scale"], block)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        num_rows, num_columns = self._grid(in_features, out_features)
        if not (self.block[0] and self.is_whole):
            num_rows = out_features
        scale_bytes = 2 if self.has_powers else 4
        return in_features * out_features + scale_bytes * num_rows * num_columns

    def _grid(self, in_features: int, out_features: int) -> tuple[int, int]:
        num_rows, num_columns = (
            -(-size // block) if block else 1
            for size, block in zip((out_features, in_features), self.block, strict=True)
        )
        return num_rows, num_columns


class Fp8(StoredQuantized):
    quant_methods = ("fp8", "fbgemm_fp8", "mxfp8")
    ignored_tensors = NOT_NEEDED

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        for name, known in (
            ("fmt", (None, "e4m3")),
            ("expert_dtype", (None, "fp8", "fp4")),
            ("activation_scheme", (None, "dynamic", "static")),
        ):
            if config.get(name) not in known:
                raise ModelLoadError(
                    f"The checkpoint is quantized ({self.name}) with {name}={config[name]!r:.80}, "
                    f"which is not supported. Supported: {', '.join(filter(None, known))}."
                )
        self._block = block_size(config.get("weight_block_size"))
        self._has_fp4 = config.get("expert_dtype") == "fp4"

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        weight = tensors.get("weight")
        if weight is None:
            return None
        scale = next((key for key in _SCALES if key in tensors), _SCALES[0])
        if self._has_fp4 and weight.dtype in ("I8", "U8"):
            check_in_blocks(name, in_features)
            return Mxfp4PackedFormat("weight", scale)
        if weight.dtype != E4M3:
            return None
        return Float8Format.of(scale, tensors.get(scale), self._block, out_features)


def block_size(value: Any) -> tuple[int, int] | None:
    """Rows and columns of a block, as a config has them.

    Raises:
        ModelLoadError: they are no sizes.
    """
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, list) else ()
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ModelLoadError(
            f"config.json: the block of a weight must be two sizes, got {value!r:.80}."
        )
    return sizes[0], sizes[1]
