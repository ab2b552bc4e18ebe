"""NVIDIA's ModelOpt (https://github.com/NVIDIA/Model-Optimizer): E4M3 with a scale for each tensor,
output or block, MXFP8, NVFP4 and MXFP4.

Of a layer in NVFP4 there are `weight`, two numbers in a byte; `weight_scale`, E4M3; and
`weight_scale_2`, which that is multiplied by. With AWQ there may be `pre_quant_scale`, which inputs
are multiplied by. Scales of inputs and of the KV cache are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axion.errors import ModelLoadError
from axion.quantization.format import WeightFormat
from axion.quantization.fp8 import E4M3, MODELOPT_BLOCK, NOT_NEEDED, Float8Format
from axion.quantization.method import StoredQuantized
from axion.quantization.mxfp4 import Mxfp4PackedFormat, check_in_blocks
from axion.quantization.nvfp4 import BLOCK, Nvfp4Format
from axion.quantization.scaled import ScaledInputFormat
from axion.quantization.stored import StoredTensor

# Those that differ in how inputs are rounded are the same here; what is stored decides.
_ALGORITHMS = (
    *("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8"),
    *("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8", "MIXED_PRECISION"),
)
_SCALES = ("weight_scale", "weight_scale_inv")
_FACTOR = "weight_scale_2"
_INPUT_SCALES = "pre_quant_scale"


class ModelOpt(StoredQuantized):
    quant_methods = ("modelopt", "modelopt_fp4", "modelopt_mixed")
    ignored_tensors = NOT_NEEDED

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        # Beside config.json, in a file of its own, it is one level deeper.
        config = config.get("quantization") or config
        algorithm = str(config.get("quant_algo") if isinstance(config, dict) else None).upper()
        if algorithm not in _ALGORITHMS:
            raise ModelLoadError(
                f"The checkpoint is quantized (modelopt) by {algorithm[:80]}, which is not "
                f"supported. Supported: {', '.join(_ALGORITHMS)}."
            )

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        weight = self._weight_format(name, tensors, in_features, out_features)
        if weight is None or _INPUT_SCALES not in tensors:
            return weight
        return ScaledInputFormat(weight, _INPUT_SCALES, divides=False)

    def _weight_format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        weight, factor = tensors.get("weight"), tensors.get(_FACTOR)
        if weight is None:
            return None
        if weight.dtype == E4M3:
            key = next((key for key in _SCALES if key in tensors), _SCALES[0])
            scale = tensors.get(key)
            is_by_block = scale is None or scale.shape not in ((1, 1), (out_features, 1))
            block = MODELOPT_BLOCK if is_by_block else None
            return Float8Format.of(key, scale, block, out_features)
        if weight.dtype != "U8":
            return None
        if factor is None:
            check_in_blocks(name, in_features)
            return Mxfp4PackedFormat("weight", _SCALES[0])
        check_in_blocks(name, in_features, BLOCK)
        shape = factor.shape if factor.shape == (1,) else ()
        return Nvfp4Format("weight", _FACTOR, shape, divides=False)
