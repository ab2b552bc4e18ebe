"""AutoRound (arXiv:2309.05516): its own config, and tensors packed as those of GPTQ or AWQ.

`packing_format` says which. `extra_config` has what differs for single layers, by their names or by
patterns that are found anywhere in a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import nn

from axion.errors import ModelLoadError
from axion.quantization.awq import AwqMethod
from axion.quantization.format import WeightFormat
from axion.quantization.gptq import GptqMethod
from axion.quantization.method import StoredQuantized
from axion.quantization.stored import StoredTensor

_GPTQ, _AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
# From so many bits on a layer is stored plain.
_PLAIN_BITS = 16
_PATTERN_CHARACTERS = set(r"*+?^$()[]{}|\\")


class AutoRoundMethod(StoredQuantized):
    quant_methods = ("auto-round", "intel/auto-round")
    read_beside = AwqMethod.read_beside

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        packing = str(config.get("packing_format") or _GPTQ)
        kind = str(config.get("data_type") or "int")
        if packing not in (_GPTQ, _AWQ) or kind != "int":
            raise ModelLoadError(
                f"The checkpoint is quantized (auto-round) as {kind[:40]!r} packed as "
                f"{packing[:80]!r}, which is not supported: expected integers as {_GPTQ} or {_AWQ}."
            )
        layers = _layers(config)
        fields = {**config, "desc_act": False, "zero_point": True, "dynamic": layers}
        if packing == _AWQ and layers:
            raise ModelLoadError(
                "The checkpoint is quantized (auto-round, packed as AWQ) with bits or groups of "
                f"their own for some layers ({next(iter(layers))[:80]}), which is not supported."
            )
        self._method = GptqMethod(fields) if packing == _GPTQ else AwqMethod(fields)

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        self._method.prepare(model, stored)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        return self._method.format(name, tensors, in_features, out_features)


def _layers(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`extra_config`, as GPTQModel would say it in `dynamic`."""
    extra = config.get("extra_config") or {}
    if not isinstance(extra, dict) or not all(isinstance(own, dict) for own in extra.values()):
        raise ModelLoadError(
            "config.json: quantization_config.extra_config must map names to objects."
        )
    layers: dict[str, dict[str, Any]] = {}
    for name, own in extra.items():
        fields = {key: own[key] for key in ("bits", "group_size") if key in own}
        is_plain = isinstance(own.get("bits"), int) and own["bits"] >= _PLAIN_BITS
        if is_plain or fields.items() <= dict(config).items():
            continue
        is_pattern = not _PATTERN_CHARACTERS.isdisjoint(name)
        layers[f".*(?:{name})" if is_pattern else f"{re.escape(name)}$"] = fields
    return layers
