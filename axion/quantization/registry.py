"""Which method reads a quantized checkpoint. The classes say so themselves; there is no table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

import axion.quantization
from axion.errors import ModelLoadError
from axion.quantization.base import QuantizationMethod, StoredQuantized

_FIELDS = ("quantization_config", "compression_config")


@cache
def method_classes() -> tuple[type[StoredQuantized], ...]:
    """The methods that the modules of `axion.quantization` have."""
    found: dict[type[StoredQuantized], None] = {}
    for module in pkgutil.iter_modules(axion.quantization.__path__):
        for cls in vars(importlib.import_module(f"axion.quantization.{module.name}")).values():
            if isinstance(cls, type) and issubclass(cls, StoredQuantized) and cls.quant_methods:
                found[cls] = None
    return tuple(found)


def quantization_method(config: Mapping[str, Any]) -> QuantizationMethod:
    """What reads the weights that `config`, as in config.json, describes.

    Raises:
        ModelLoadError: they are quantized by a method, or with an option of it, that is not
            supported.
    """
    if (quantization := quantization_config(config)) is None:
        return QuantizationMethod()
    for cls in method_classes():
        if cls.reads(quantization):
            return cls(quantization)
    names = sorted(name for cls in method_classes() for name in cls.quant_methods)
    raise ModelLoadError(
        f"The checkpoint is quantized ({str(quantization.get('quant_method'))[:80]}), which is not "
        f"supported. Supported: {', '.join(names)}. Or use the unquantized version of the model."
    )


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`quantization_config` of config.json, by whichever name and wherever it is."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for name in _FIELDS:
            if (value := place.get(name)) is None:
                continue
            if not isinstance(value, dict):
                raise ModelLoadError(f"config.json: {name} must be an object, got {value!r:.80}.")
            return value
    return None
