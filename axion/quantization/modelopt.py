"""NVIDIA's ModelOpt: E4M3 with a scale for each tensor or output, and NVFP4.

Of a layer in NVFP4 there are `weight`, two numbers in a byte; `weight_scale`, E4M3; and
`weight_scale_2`, which that is multiplied by. Scales of inputs and of the KV cache are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axion.errors import ModelLoadError
from axion.quantization.format import WeightFormat
from axion.quantization.fp8 import E4M3, NOT_NEEDED, Float8Format
from axion.quantization.method import StoredQuantized
from axion.quantization.mxfp4 import check_in_blocks
from axion.quantization.nvfp4 import BLOCK, Nvfp4Format
from axion.quantization.stored import StoredTensor

_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION")
_FACTOR = "weight_scale_2"


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
        weight, factor = tensors.get("weight"), tensors.get(_FACTOR)
        if "pre_quant_scale" in tensors:
            raise ModelLoadError(
                f"{name[:200]} scales its inputs (pre_quant_scale, ModelOpt's AWQ), which is not "
                "supported."
            )
        if weight is not None and weight.dtype == E4M3:
            scale = tensors.get("weight_scale")
            return Float8Format.of("weight_scale", scale, None, out_features)
        if weight is None or weight.dtype != "U8":
            return None
        check_in_blocks(name, in_features, BLOCK)
        shape = factor.shape if factor is not None and factor.shape == (1,) else ()
        return Nvfp4Format("weight", _FACTOR, shape, divides=False)
