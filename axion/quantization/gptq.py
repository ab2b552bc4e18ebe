"""GPTQ (arXiv:2210.17323), as AutoGPTQ and GPTQModel store it.

Of a linear layer there are `qweight` `[in_features * bits / 32, out_features]`, the codes of a
column one after another; `scales` `[num_groups, out_features]`; `qzeros`
`[num_groups, out_features * bits / 32]`, the zero points, less one in the first version of the
format; and `g_idx` `[in_features]`, the group of each input, which may be left out where they are
in order.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.quantization import integers
from axion.quantization.format import WeightFormat
from axion.quantization.layers import QuantizedLinear
from axion.quantization.method import StoredQuantized
from axion.quantization.patterns import known_as, matches
from axion.quantization.stored import Expected, StoredTensor

_BITS = (2, 3, 4, 8)
_VERSIONS = ("gptq", "gptq_v2")


@dataclass(frozen=True, kw_only=True)
class GptqFormat(integers.IntegerFormat):
    """
    Attributes:
        is_offset: zero points are stored less one.
        has_groups: `g_idx` is stored.
    """

    is_offset: bool
    has_groups: bool

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        num_groups = -(-in_features // self.group_size)
        expected = {
            "qweight": Expected((in_features * self.bits // 32, out_features), ("I32",)),
            "qzeros": Expected((num_groups, out_features * self.bits // 32), ("I32",)),
            "scales": Expected((num_groups, out_features), (self.scales,)),
        }
        return expected | ({"g_idx": Expected((in_features,), ("I32",))} if self.has_groups else {})

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        unpacked = {
            "codes": integers.as_bytes(tensors["qweight"].T),
            "scales": tensors["scales"].T,
            "zeros": self._zeros(tensors["qzeros"]).T,
        }
        if self.is_ordered:
            return unpacked
        return unpacked | {"groups": tensors["g_idx"]}

    def _zeros(self, qzeros: Tensor) -> Tensor:
        if self.is_offset and self.bits != 3:
            # Taken away from whole words: what a zero borrowed comes back from the next one.
            qzeros = qzeros + sum(1 << shift for shift in range(0, 32, self.bits))
        zeros = integers.unpack(integers.as_bytes(qzeros), self.bits)
        return zeros + 1 & 7 if self.is_offset and self.bits == 3 else zeros


class GptqMethod(StoredQuantized):
    quant_methods = ("gptq",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        version = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
        if config.get("is_marlin_format"):
            version = "marlin"
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"The checkpoint is GPTQ in the format {version[:80]!r}, which is not supported: "
                f"expected {' or '.join(_VERSIONS)}."
            )
        if config.get("pack_dtype", "int32") not in ("int32", None):
            raise ModelLoadError(
                f"GPTQ with pack_dtype {config['pack_dtype']!r:.80} is not supported: expected "
                "int32."
            )
        if config.get("adapter"):
            raise ModelLoadError("GPTQ with an adapter is not supported.")
        self._is_offset = version == "gptq"
        self._config = config
        _check(config, "quantization_config")
        self._overrides = _overrides(config)

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        super().prepare(model, stored)
        # Early versions of AutoGPTQ stored a bias of zeros for layers without one.
        for layer in model.modules():
            if isinstance(layer, QuantizedLinear) and layer.bias is None:
                for source in layer.sources:
                    bias = stored.get(name := f"{source.path}.bias")
                    if bias is not None and not bias.read().any():
                        del stored[name]

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        if "qweight" not in tensors:
            return None
        config = {**self._config, **self._fields(name)}
        bits, group_size = config["bits"], config["group_size"]
        for size in (in_features, out_features):
            if size * bits % 32:
                raise ModelLoadError(
                    f"{name} has {size} inputs or outputs, which cannot be packed with {bits} bits."
                )
        group_size = in_features if group_size == -1 else min(group_size, in_features)
        groups = tensors.get("g_idx")
        is_reordered = config.get("desc_act") and group_size < in_features
        return GptqFormat(
            bits=bits,
            group_size=group_size,
            scales=integers.scale_dtype(tensors.get("scales")),
            is_ordered=groups is None or _is_ordered(groups, in_features, group_size),
            is_offset=self._is_offset,
            has_groups=groups is not None or bool(is_reordered),
        )

    def _fields(self, name: str) -> Mapping[str, Any]:
        return next(
            (
                fields
                for own in known_as(name)
                for pattern, fields in self._overrides
                if matches(pattern, own)
            ),
            {},
        )


def _overrides(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What is different for the layers whose names begin as a pattern says."""
    overrides = []
    try:
        for pattern, fields in (config.get("dynamic") or {}).items():
            where = f"quantization_config.dynamic[{pattern[:80]!r}]"
            if not pattern.startswith("-:"):  # those are stored plain
                _check({**config, **fields}, where)
                pattern = pattern.removeprefix("+:")
                matches(pattern, "")  # raises if it is none
                overrides.append((pattern, fields))
    except (AttributeError, TypeError) as error:
        raise ModelLoadError(
            f"config.json: quantization_config.dynamic must map patterns to objects: {error}."
        ) from None
    return overrides


def _check(config: Mapping[str, Any], where: str) -> None:
    bits, group_size = config.get("bits"), config.get("group_size")
    if type(bits) is not int or bits not in _BITS:
        raise ModelLoadError(
            f"config.json: {where}: GPTQ with bits {bits!r:.80} is not supported: expected one of "
            f"{', '.join(map(str, _BITS))}."
        )
    if type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise ModelLoadError(
            f"config.json: {where}: group_size must be -1 or at least 1, got {group_size!r:.80}."
        )


def _is_ordered(stored: StoredTensor, in_features: int, group_size: int) -> bool:
    if stored.shape != (in_features,) or stored.dtype != "I32":
        return True  # the loader says what is wrong
    groups = stored.read()
    last = (in_features - 1) // group_size
    if groups.min() < 0 or groups.max() > last:
        raise ModelLoadError(
            f"{stored.name} must hold groups from 0 to {last}, got {int(groups.min())} to "
            f"{int(groups.max())}."
        )
    return torch.equal(groups, torch.arange(in_features, dtype=torch.int32) // group_size)
