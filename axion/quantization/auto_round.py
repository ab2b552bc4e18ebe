"""AutoRound (arXiv:2309.05516): its own config, and tensors as GPTQ, AWQ, llm-compressor or fp8
have them (https://github.com/intel/auto-round, `export_to_autoround`).

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
from axion.quantization.compressed_tensors import CompressedTensors, PackedFloats
from axion.quantization.format import WeightFormat
from axion.quantization.fp8 import Fp8
from axion.quantization.gptq import GptqMethod
from axion.quantization.method import StoredQuantized
from axion.quantization.stored import StoredTensor

_AWQ = "auto_round:auto_awq"
# Of integers as GPTQ has them: how its zero points are stored.
_GPTQ = {
    None: "gptq",
    "auto_round:auto_gptq": "gptq",
    "auto_round": "gptq_v2",
    "auto_round:gptqmodel": "gptq_v2",
}
_E4M3 = (None, "auto_round:fp8", "auto_round:fp8_static")
_FLOATS = ("auto_round:llm_compressor",)
# From so many bits on a layer is stored plain.
_PLAIN_BITS = 16
_PATTERN_CHARACTERS = set(r"*+?^$()[]{}|\\")


class AutoRoundMethod(StoredQuantized):
    quant_methods = ("auto-round", "intel/auto-round")
    read_beside = AwqMethod.read_beside
    ignored_tensors = CompressedTensors.ignored_tensors

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        packing, kind = config.get("packing_format"), str(config.get("data_type") or "int")
        self._method = _method(packing, kind, config)

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        self._method.prepare(model, stored)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        return self._method.format(name, tensors, in_features, out_features)


def _method(packing: Any, kind: str, config: Mapping[str, Any]) -> StoredQuantized:
    """What reads the tensors."""
    if kind == "int" and packing in _GPTQ:
        more = {"desc_act": False, "dynamic": _layers(config), "checkpoint_format": _GPTQ[packing]}
        return GptqMethod({**config, **more})
    if kind == "int" and packing == _AWQ:
        if layers := _layers(config):
            raise ModelLoadError(
                "The checkpoint is quantized (auto-round, packed as AWQ) with bits or groups of "
                f"their own for some layers ({next(iter(layers))[:80]}), which is not supported."
            )
        return AwqMethod({**config, "zero_point": True})
    if kind.startswith("fp") and packing in _E4M3:
        return Fp8({**config, "weight_block_size": _block(config.get("group_size"))})
    if kind.startswith(("mx_fp", "nv_fp")) and packing in _FLOATS:
        return PackedFloats(config)
    raise ModelLoadError(
        f"The checkpoint is quantized (auto-round) as {kind[:40]!r} packed as "
        f"{str(packing)[:80]!r}, which is not supported: expected integers as "
        f"{', '.join(filter(None, (*_GPTQ, _AWQ)))}, "
        f"fp as {', '.join(filter(None, _E4M3))}, or mx_fp and nv_fp as {', '.join(_FLOATS)}."
    )


def _block(group_size: Any) -> list[int] | None:
    """Of weights in E4M3: rows and columns that share a scale, where it is not an output's."""
    return group_size if isinstance(group_size, list) else None


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
