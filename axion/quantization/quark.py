"""AMD's Quark (https://quark.docs.amd.com): E4M3 with a scale for each tensor or output, and MXFP4.

Of a layer there are `weight` and `weight_scale`; what is stored says which of the two it is. Scales
of inputs and of the KV cache are not used.
"""

from __future__ import annotations

from collections.abc import Mapping

from axion.errors import ModelLoadError
from axion.quantization.format import WeightFormat
from axion.quantization.fp8 import E4M3, NOT_NEEDED, Float8Format
from axion.quantization.method import StoredQuantized
from axion.quantization.mxfp4 import Mxfp4PackedFormat, check_in_blocks
from axion.quantization.stored import FLOATS, StoredTensor

_SCALE = "weight_scale"


class Quark(StoredQuantized):
    quant_methods = ("quark",)
    ignored_tensors = NOT_NEEDED

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        weight, scale = tensors.get("weight"), tensors.get(_SCALE)
        if weight is None or weight.dtype in FLOATS:
            return None
        if weight.dtype == E4M3:
            return Float8Format.of(_SCALE, scale, None, out_features)
        if weight.dtype == "U8" and scale is not None and scale.dtype == "U8":
            check_in_blocks(name, in_features)
            return Mxfp4PackedFormat("weight", _SCALE)
        raise ModelLoadError(
            f"{name[:200]} is quantized by Quark as {weight.dtype}, with scales as "
            f"{scale.dtype if scale else 'nothing'}, which is not supported. Supported: E4M3 and "
            "MXFP4."
        )
