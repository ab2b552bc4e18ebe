"""The linear layers and the experts of a transformers' class, as layers of Axion's own.

So they are kept and computed as those of any other model are: quantized, or laid out for the
processor. What else there is in the class transformers loads, and what it would have to rearrange
as well, which quantized weights do not allow: there they are dequantized.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from axion.layers.linear import DenseLinear, Linear, TransposedLinear
from axion.layers.moe import ALIGNMENT, ExpertLinear, TransposedExpertLinear
from axion.quantization.format import Source
from axion.quantization.method import QuantizationMethod, StoredQuantized
from axion.quantization.stored import FLOATS, StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

logger = logging.getLogger("axion.models")

# What checkpoints call the projections of an expert, where transformers does not stack them.
_PROJECTIONS = {
    **{"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
    **{"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"},
}
_STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_SHOWN = 3


class Absent(nn.Module):
    """In a layer's place while transformers loads the others: there is nothing to initialise, in it
    or in its parameters."""

    _is_hf_initialized = True

    @property
    def weight(self) -> Absent:
        return self

    @property
    def bias(self) -> Absent:
        return self


@dataclass(frozen=True)
class OwnLayers:
    """A checkpoint, divided.

    Attributes:
        modules: the layers, at their paths in the model, on the meta device.
        paths: of those.
        stored: their tensors, by the names that `modules` has.
        rest: what transformers loads, by the checkpoint's names.
    """

    modules: nn.Module
    paths: tuple[str, ...]
    stored: dict[str, StoredTensor]
    rest: dict[str, StoredTensor]


def own_layers(
    model: PreTrainedModel,
    tensors: Mapping[str, StoredTensor],
    method: QuantizationMethod,
    dtype: torch.dtype,
) -> OwnLayers:
    """Which of a checkpoint's tensors go into layers of Axion's own.

    Args:
        model: on the meta device.
        tensors: by their names in the checkpoint.
        dtype: to which weights are dequantized that cannot stay quantized.

    Raises:
        ModelLoadError: a weight can neither stay quantized nor be dequantized.
    """
    names = _Names(model)
    linears, experts = dict(_linears(model)), dict(_experts(model))
    stored: dict[str, dict[str, StoredTensor]] = {}
    left: dict[str, dict[str, StoredTensor]] = {}
    for prefix, parts in _by_layer(tensors).items():
        for suffix, tensor in parts.items():
            place = _place(names, linears, experts, prefix, suffix)
            if place is None:
                left.setdefault(prefix, {})[suffix] = tensor
            else:
                layer, name = place
                stored.setdefault(layer, {})[name] = tensor
    layers: dict[str, Linear | ExpertLinear] = {p: linears[p] for p in stored if p in linears}
    for path, module in experts.items():
        found = {f"{path}.{name}": stored.pop(f"{path}.{name}", {}) for name in _STACKS}
        if all(found.values()) and (stacks := _stacks(path, module, found)):
            layers |= stacks
            stored |= found
        else:
            for tensor in (tensor for one in found.values() for tensor in one.values()):
                prefix, suffix = _split(tensor.name)
                left.setdefault(prefix, {})[suffix] = tensor
    beside = _matching(rest := _Rest(names, method, dtype).tensors(left), method.read_beside)
    skipped = beside | _matching(rest, method.ignored_tensors)
    return OwnLayers(
        modules=_tree(layers),
        paths=tuple(layers),
        stored={name: tensor for parts in stored.values() for name, tensor in parts.items()}
        | {names.find(name)[0]: rest[name] for name in beside},
        rest={name: tensor for name, tensor in rest.items() if name not in skipped},
    )


def _matching(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    compiled = [re.compile(pattern) for pattern in patterns]
    return {name for name in names if any(pattern.fullmatch(name) for pattern in compiled)}


def remove(model: nn.Module, paths: tuple[str, ...]) -> None:
    """Take the layers out of a model, so that `Absent` is in their place."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        if name in module._parameters:
            delattr(module, name)
        setattr(module, name, Absent())  # where a module was, so that their order stays


class _Names:
    """Which parameter of the model a stored tensor becomes, as transformers would have it."""

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._by_pattern = {p: entry for entry in self._converters for p in entry.source_patterns}
        self._prefix = model.base_model_prefix
        self.parameters = model.state_dict()

    def find(self, name: str) -> tuple[str, WeightConverter | None, str]:
        """The parameter, what makes it of several tensors, and the pattern of `name` therein."""
        from transformers.core_model_loading import rename_source_key

        for renamings, converters in ((self._renamings, self._converters), ([], [])):
            found, pattern = rename_source_key(
                name, renamings, converters, self._prefix, self.parameters
            )
            if found in self.parameters:
                break
        return found, self._by_pattern[pattern] if pattern else None, pattern or ""

    def shape(self, prefix: str) -> tuple[int, int] | None:
        """Rows and columns of the one matrix that is stored as `prefix`; None: not known."""
        target, converter, _ = self.find(f"{prefix}.weight")
        if target not in self.parameters:
            return None
        shape = tuple(self.parameters[target].shape)
        if len(shape) == 2:
            num_parts = 1
            if converter is not None:
                if "Chunk" not in _operations(converter):
                    return None
                num_parts = len(converter.target_patterns)
            return num_parts * shape[0], shape[1]
        if (
            len(shape) == 3
            and converter is not None
            and "MergeModulelist" in _operations(converter)
        ):
            return shape[1] // len(converter.source_patterns), shape[2]
        return None


def _operations(converter: WeightConverter) -> list[str]:
    return [type(operation).__name__ for operation in converter.operations]


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, Linear]]:
    from transformers.pytorch_utils import Conv1D

    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    wide = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    for path, module in model.named_modules():
        if type(module) not in (nn.Linear, Conv1D) or owners[module.weight] > 1:
            continue
        if not any(name in f"{path}.weight" for name in wide):
            with torch.device("meta"):
                yield path, _linear(module, model.get_submodule(path.rpartition(".")[0]))


def _linear(module: Any, parent: nn.Module) -> Linear:
    has_bias = module.bias is not None
    if not isinstance(module, nn.Linear):  # Conv1D
        return TransposedLinear(module.nx, module.nf, bias=has_bias)
    num_experts = getattr(getattr(parent, "experts", None), "num_experts", None)
    cls = DenseLinear if num_experts == module.out_features else Linear  # a router
    return cls(module.in_features, module.out_features, bias=has_bias)


def _experts(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Those that are computed through transformers' interface."""
    for path, module in model.named_modules():
        if (
            getattr(module, "has_gate", False)
            and getattr(module, "is_concatenated", False)
            and not module.has_bias
            and not module.has_post_expert_norm
        ):
            yield path, module


def _by_layer(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    found: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors.values():
        prefix, suffix = _split(tensor.name)
        found.setdefault(prefix, {})[suffix] = tensor
    return found


def _split(name: str) -> tuple[str, str]:
    """The name of the layer, and what is stored of it (`weight`, `qweight`, `weight.absmax`)."""
    prefix, dot, suffix = name.partition(".weight.")
    if dot:
        return prefix, f"weight.{suffix}"
    prefix, _, suffix = name.rpartition(".")
    return prefix, suffix


def _place(
    names: _Names,
    linears: Mapping[str, Linear],
    experts: Mapping[str, nn.Module],
    prefix: str,
    suffix: str,
) -> tuple[str, str] | None:
    """The layer that a tensor belongs to, and its name there; None: transformers loads it."""
    target, converter, pattern = names.find(f"{prefix}.weight")
    path = target.removesuffix(".weight")
    if path in linears:
        return (path, f"{path}.{suffix}") if converter is None else None
    one = re.search(r"\.(\d+)\.([^.]+)$", prefix)
    parent, _, name = target.rpartition(".")
    if parent in experts and name in _STACKS:
        if converter is None:  # experts that are stacked already
            return target, f"{target}.{suffix}"
        if one is None or not {*_operations(converter)} <= {"MergeModulelist", "Concatenate"}:
            return None
        part = _STACKS[name][converter.source_patterns.index(pattern)]
        return target, f"{parent}.{one[1]}.{part}.{suffix}"
    if one is not None and (part := _PROJECTIONS.get(one[2])) is not None:
        parent = path.removesuffix(one[0])
        if parent in experts:
            stack = next(stack for stack, parts in _STACKS.items() if part in parts)
            return f"{parent}.{stack}", f"{parent}.{one[1]}.{part}.{suffix}"
    return _place_in_stack(names, experts, f"{prefix}.{suffix}")


def _place_in_stack(
    names: _Names, experts: Mapping[str, nn.Module], name: str
) -> tuple[str, str] | None:
    """The same of a tensor that is a stack by itself (`experts.down_proj`, and beside it
    `experts.down_proj_scale_inv`)."""
    match = re.search(r"\.(?:gate_up_proj|down_proj)(?=$|_(?!bias)(\w+)$)", name)
    if match is None:
        return None
    target, converter, _ = names.find(name[: match.end()])
    if target.rpartition(".")[0] not in experts:
        return None
    if converter is not None and {*_operations(converter)} != {"Transpose"}:
        return None
    return target, f"{target}.{match[1] or 'weight'}"


def _stacks(
    path: str, module: Any, stored: Mapping[str, Mapping[str, StoredTensor]]
) -> dict[str, ExpertLinear] | None:
    """A module's experts; None: the products with them want other sizes."""
    stacks: dict[str, ExpertLinear] = {}
    for name, parts in _STACKS.items():
        num_experts, out_features, in_features = getattr(module, name).shape
        if module.is_transposed:
            out_features, in_features = in_features, out_features
        if in_features % ALIGNMENT:
            return None
        whole = stored[f"{path}.{name}"].get(f"{path}.{name}.weight")
        cls, shape = ExpertLinear, (num_experts, out_features, in_features)
        if whole is not None and whole.dtype in FLOATS:
            is_turned = whole.shape == (num_experts, in_features, out_features)
            if is_turned and (module.is_transposed or whole.shape != shape):
                cls = TransposedExpertLinear
        shards = {part: out_features // len(parts) for part in parts}
        with torch.device("meta"):
            stacks[f"{path}.{name}"] = cls(num_experts, in_features, shards)
    return stacks


def _tree(layers: Mapping[str, nn.Module]) -> nn.Module:
    root = nn.Module()
    for path, layer in layers.items():
        *parents, name = path.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(name, layer)
    return root


class _Rest:
    """What transformers loads: weights as they are, and those that must be dequantized for it."""

    def __init__(self, names: _Names, method: QuantizationMethod, dtype: torch.dtype) -> None:
        self._names = names
        self._method = method
        self._dtype = dtype

    def tensors(self, left: Mapping[str, Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
        rest: dict[str, StoredTensor] = {}
        dequantized: list[Source] = []
        for prefix, parts in left.items():
            source = self._source(prefix, parts)
            used = {} if source is None else source.expected()
            rest |= {t.name: t for t in parts.values() if t.name not in used}
            if source is not None:
                dequantized.append(source)
                rest[f"{prefix}.weight"] = source.plain(self._dtype)
        if dequantized:
            plain = sum(source.in_features * source.out_features for source in dequantized)
            logger.warning(
                "%d weights cannot stay quantized (%s), for transformers stores them in another "
                "arrangement: they take %.2f GiB in place of %.2f",
                len(dequantized),
                some([source.path for source in dequantized]),
                plain * self._dtype.itemsize / 2**30,
                sum(source.num_bytes(self._dtype) for source in dequantized) / 2**30,
            )
        return rest

    def _source(self, prefix: str, parts: Mapping[str, StoredTensor]) -> Source | None:
        """Of a weight that is stored quantized."""
        if not isinstance(self._method, StoredQuantized) or all(
            tensor.dtype in FLOATS for tensor in parts.values()
        ):
            return None
        shape = self._names.shape(prefix)
        if shape is None:
            return None  # transformers says what it is
        out_features, in_features = shape
        source = self._method.source(prefix, parts, in_features, out_features)
        return source if source.format.is_quantized else None


def some(names: list[str]) -> str:
    """The first few, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:100] for name in names[:_SHOWN]) + more
