"""AWQ (arXiv:2306.00978), as AutoAWQ stores it: four bits, eight codes in an int32.

As `gemm`: `qweight` `[in_features, out_features / 8]`, `qzeros` `[num_groups, out_features / 8]`
and `scales` `[num_groups, out_features]`, where the eight are columns 0 2 4 6 1 3 5 7. As `gemv`:
`qweight` `[out_features, in_features / 8]`, and `qzeros` and `scales` by rows too, with room for
more groups than there are; the eight are in order.

In some architectures the activation has `scales`, which its output is divided by (AutoAWQ's
`ScaledActivation`: Falcon, MPT, BLOOM, GPT-NeoX, GPT-J, StarCoder). Here that is the business of
the layer behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.linear import Linear
from axion.quantization import integers
from axion.quantization.format import WeightFormat
from axion.quantization.method import StoredQuantized
from axion.quantization.scaled import ScaledInputFormat
from axion.quantization.stored import Expected, StoredTensor

_BITS = 4
_CODES = 8
# Which of eight columns each four bits of a word are, from the lowest.
_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_VERSIONS = ("gemm", "gemv")
# Smaller groups have no room in its rows.
_GEMV_GROUPS = (32, 64)
_GEMV_MIN_GROUP = 128
# What the activation of a feed-forward network is called, and its scales once they are a layer's.
_ACTIVATIONS = ("act", "gelu_impl")
_INPUT_SCALES = "input_scales"


@dataclass(frozen=True, kw_only=True)
class AwqFormat(integers.IntegerFormat):
    """As `gemm`."""

    bits: int = _BITS

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        num_groups, columns = in_features // self.group_size, out_features // _CODES
        return {
            "qweight": Expected((in_features, columns), ("I32",)),
            "qzeros": Expected((num_groups, columns), ("I32",)),
            "scales": Expected((num_groups, out_features), (self.scales,)),
        }

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        return {
            "codes": _by_output(tensors["qweight"][::2])
            | _by_output(tensors["qweight"][1::2]) << _BITS,
            "scales": tensors["scales"].T,
            "zeros": _by_output(tensors["qzeros"]),
        }


@dataclass(frozen=True, kw_only=True)
class AwqGemvFormat(AwqFormat):
    """As `gemv`."""

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        multiple = max(_GEMV_MIN_GROUP // self.group_size, 1)
        words = -(-(in_features // self.group_size) // _CODES)
        words = -(-words // multiple) * multiple
        return {
            "qweight": Expected((out_features, in_features // _CODES), ("I32",)),
            "qzeros": Expected((out_features, words), ("I32",)),
            "scales": Expected((out_features, words * _CODES), (self.scales,)),
        }

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        num_groups = in_features // self.group_size
        zeros = integers.unpack(tensors["qzeros"].view(torch.uint8), _BITS)
        return {
            "codes": tensors["qweight"].view(torch.uint8),
            "scales": tensors["scales"][:, :num_groups],
            "zeros": zeros[:, :num_groups],
        }


def _by_output(words: Tensor) -> Tensor:
    """Words `[n, out_features / 8]` to codes `[out_features, n]`, uint8."""
    codes = words.new_empty(words.shape[1], _CODES, len(words), dtype=torch.uint8)
    for place, column in enumerate(_COLUMNS):
        codes[:, column] = (words >> _BITS * place & 15).T
    return codes.flatten(0, 1)


class AwqMethod(StoredQuantized):
    quant_methods = ("awq",)
    read_beside = tuple(rf".*\.{name}\.scales" for name in _ACTIVATIONS)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        version = str(config.get("version") or config.get("format") or "gemm").lower()
        if config.get("backend") == "llm-awq":
            version = "llm-awq"
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"The checkpoint is AWQ in the version {version[:80]!r}, which is not supported: "
                f"expected {' or '.join(_VERSIONS)}."
            )
        bits = config.get("bits", config.get("w_bit", _BITS))
        if bits != _BITS:
            raise ModelLoadError(f"AWQ with {bits!r:.80} bits is not supported: expected {_BITS}.")
        self._format = AwqGemvFormat if version == "gemv" else AwqFormat
        self._group_size = config.get("group_size", config.get("q_group_size", 128))
        if type(self._group_size) is not int or (self._group_size < 1 and self._group_size != -1):
            raise ModelLoadError(
                "config.json: quantization_config.group_size must be -1 or at least 1, got "
                f"{self._group_size!r:.80}."
            )
        self._has_zeros = config.get("zero_point", True)

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        for name in list(stored):
            parent, _, activation = name.removesuffix(".scales").rpartition(".")
            if name.endswith(".scales") and activation in _ACTIVATIONS:
                layer = _layer_behind(model, parent, stored[name].shape)
                if layer is not None:
                    stored[f"{layer}.{_INPUT_SCALES}"] = stored.pop(name)
        super().prepare(model, stored)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        if "qweight" not in tensors:
            return None
        if "qzeros" not in tensors and not self._has_zeros:
            raise ModelLoadError(f"AWQ without zero points (zero_point) is not supported: {name}.")
        group_size = in_features if self._group_size == -1 else self._group_size
        if in_features % group_size or in_features % _CODES or out_features % _CODES:
            raise ModelLoadError(
                f"{name} has {in_features} inputs and {out_features} outputs, which AWQ cannot "
                f"pack in groups of {group_size} and words of {_CODES}."
            )
        is_gemv = self._format is AwqGemvFormat
        if is_gemv and group_size < _GEMV_MIN_GROUP and group_size not in _GEMV_GROUPS:
            raise ModelLoadError(
                f"AWQ as gemv with groups of {group_size} is not supported: expected 32, 64, or at "
                "least 128."
            )
        weight = self._format(
            group_size=group_size, scales=integers.scale_dtype(tensors.get("scales"))
        )
        if _INPUT_SCALES in tensors:
            return ScaledInputFormat(weight, _INPUT_SCALES, divides=True)
        return weight


def _layer_behind(model: nn.Module, parent: str, shape: tuple[int, ...]) -> str | None:
    """The linear layer of a feed-forward network that takes the activation's output."""
    network = dict(model.named_modules()).get(parent, nn.Module())
    behind = [
        f"{parent}.{name}"
        for name, layer in network.named_children()
        if isinstance(layer, Linear) and (layer.in_features,) == shape
    ]
    return behind[0] if len(behind) == 1 else None
