"""Which method reads a quantized checkpoint. The classes say so themselves; there is no table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import axion.quantization
from axion.errors import ModelLoadError
from axion.hub.config import quantization_config
from axion.quantization.method import QuantizationMethod, StoredQuantized
from axion.quantization.on_load import Fp8OnLoad, Int4OnLoad, Int8OnLoad

# Its configs have no quant_method, and by now no other's are without.
_UNNAMED = "MLX"
_ON_LOAD = {cls.name: cls for cls in (Int8OnLoad, Int4OnLoad, Fp8OnLoad)}


@cache
def method_classes() -> tuple[type[StoredQuantized], ...]:
    """The methods that the modules of `axion.quantization` have."""
    found: dict[type[StoredQuantized], None] = {}
    for module in pkgutil.iter_modules(axion.quantization.__path__):
        for cls in vars(importlib.import_module(f"axion.quantization.{module.name}")).values():
            if isinstance(cls, type) and issubclass(cls, StoredQuantized) and cls.quant_methods:
                found[cls] = None
    return tuple(found)


def quantization_method(config: Mapping[str, Any], on_load: str = "none") -> QuantizationMethod:
    """What reads the weights that `config`, as in config.json, describes.

    Args:
        on_load: what plain weights are quantized to: `int8`, `int4`, `fp8`; or `none`.

    Raises:
        ModelLoadError: they are quantized by a method, or with an option of it, that is not
            supported; or they are not plain and `on_load` asks for that.
    """
    if (quantization := quantization_config(config)) is None:
        return QuantizationMethod() if on_load == "none" else _ON_LOAD[on_load]()
    name = str(quantization.get("quant_method") or _UNNAMED)[:80]
    if on_load != "none":
        raise ModelLoadError(
            f"QUANTIZATION={on_load} quantizes plain weights, and the checkpoint's are quantized "
            f"already ({name}). Unset it, or use the "
            "unquantized version of the model."
        )
    for cls in method_classes():
        if cls.reads(quantization):
            return cls(quantization)
    names = sorted(name for cls in method_classes() for name in cls.quant_methods)
    raise ModelLoadError(
        f"The checkpoint is quantized ({name}), which is not supported. Supported: "
        f"{', '.join(names)}. Or use the unquantized version of the model, and QUANTIZATION=int8 "
        "or int4 for less memory."
    )
