"""What becomes of a model's layers because its weights are quantized, or are to be.

A `QuantizationMethod` is what config.json's `quantization_config` asks for. It puts a
`QuantizedLinear` where the model has a linear layer whose weight is stored quantized, and says by
a `WeightFormat` how it is stored. That turns what is stored into a `Kernel`, which keeps the weight
and multiplies by it. Models know nothing of all this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, ClassVar

import torch
from torch import nn

from axion.layers import onednn
from axion.layers.embedding import Embedding
from axion.layers.linear import DenseLinear, Linear, PackedLinear
from axion.layers.moe import ExpertLinear, Router
from axion.quantization.format import DenseFormat, Source, WeightFormat
from axion.quantization.kernel import DenseKernel
from axion.quantization.layers import (
    QuantizedEmbedding,
    QuantizedExpertLinear,
    QuantizedLinear,
    QuantizedPackedLinear,
    TiedHead,
    quantized_experts,
)
from axion.quantization.stored import StoredTensor

_Parts = Mapping[str, Mapping[str, StoredTensor]]


class QuantizationMethod:
    """What happens to a model because its weights are quantized, or are to be.

    This one is for plain weights, and for what others leave plain: those that oneDNN can lay out
    for the CPU are packed.

    Attributes:
        quant_methods: what config.json calls the method.
        ignored_tensors: patterns of tensors that such checkpoints hold and nobody reads.
        read_beside: patterns of those that `prepare` takes, which are no layer's.
    """

    quant_methods: ClassVar[tuple[str, ...]] = ()
    ignored_tensors: ClassVar[tuple[str, ...]] = ()
    read_beside: ClassVar[tuple[str, ...]] = ()
    name = ""

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether config.json's `quantization_config` asks for this method."""
        return config.get("quant_method") in cls.quant_methods

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        """Change a model on the meta device, before what it expects is compared with `stored`,
        from which may be removed what nobody needs."""
        head = getattr(model, "lm_head", None)
        for path, module in list(model.named_modules()):
            tensor = stored.get(f"{path}.weight")
            if not isinstance(module, Embedding) or tensor is None:
                continue
            is_tied = getattr(head, "weight", None) is module.weight
            format = self.embedding_format(tensor, is_tied and onednn.is_large(module.weight))
            if format is not None:
                num_embeddings, embedding_dim = module.weight.shape
                parts = {"weight": tensor}
                source = Source(path, format, embedding_dim, num_embeddings, parts)
                embedding = QuantizedEmbedding(module, source)
                model.set_submodule(path, embedding)
                if is_tied:
                    model.lm_head = TiedHead(head, embedding)

    def embedding_format(self, tensor: StoredTensor, is_head: bool) -> WeightFormat | None:
        """How an embedding is stored; None: it stays what it is.

        Args:
            is_head: it is a head too, and large enough to be worth packing.
        """
        return DenseFormat() if is_head else None

    def num_bytes(self, module: nn.Module, dtype: torch.dtype) -> int:
        """Bytes of what `module` itself, without those in it, will keep."""
        own = sum(p.numel() for p in module.parameters(recurse=False)) * dtype.itemsize
        return own + (module.num_bytes(dtype) if isinstance(module, QuantizedLinear) else 0)

    def loading_bytes(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> int:
        """Bytes that are held beside those of `num_bytes` while `module` is loaded: what it is
        made of."""
        if isinstance(module, QuantizedLinear):
            return module.num_bytes(dtype)
        if isinstance(module, Linear) and not isinstance(module, DenseLinear):
            weights = [module.weight]
        elif isinstance(module, ExpertLinear):
            weights = list(module.weight)
        else:
            return 0
        is_packed = device.type == "cpu" and onednn.is_large(weights[0])
        return sum(weight.numel() for weight in weights) * dtype.itemsize if is_packed else 0

    def finish(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """What takes the place of a module whose parameters have been filled."""
        if isinstance(module, QuantizedEmbedding):
            module.load(device, dtype)
        elif isinstance(module, Linear) and not isinstance(module, DenseLinear):
            weight = module.weight.detach()
            if onednn.suits(weight):
                return QuantizedLinear(module, [], DenseKernel(weight))
        elif isinstance(module, ExpertLinear) and onednn.suits(module.weight[0]):
            return quantized_experts(module, map(DenseKernel, module.weight.detach()))
        return module


class StoredQuantized(QuantizationMethod, ABC):
    """A method by which a checkpoint is quantized. To override: `format`.

    Args:
        config: config.json's `quantization_config`.

    Raises:
        ModelLoadError: the config asks for something that is not supported.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.name = str(config.get("quant_method"))

    @abstractmethod
    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        """How the weight of a linear layer is stored; None: as a plain one.

        What is stored decides, more than what the config says of it.

        Args:
            name: of the layer, in the checkpoint's names.
            tensors: what is stored of the layer, by the part of the name behind the layer's.
        """

    def prepare(self, model: nn.Module, stored: MutableMapping[str, StoredTensor]) -> None:
        super().prepare(model, stored)
        parts = _by_prefix(stored)
        for path, module in list(model.named_modules()):
            if isinstance(module, ExpertLinear):
                quantized = self._experts(path, module, parts)
            elif isinstance(module, DenseLinear | Router):
                self._dequantize(path, module, parts, stored)
                continue
            elif isinstance(module, Linear):
                quantized = self._linear(path, module, parts)
            else:
                continue
            if quantized is not None:
                model.set_submodule(path, quantized)

    def finish(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
        if isinstance(module, QuantizedEmbedding) or not isinstance(module, QuantizedLinear):
            return super().finish(module, device, dtype)
        module.load(device, dtype)
        return module

    def _linear(self, path: str, linear: Linear, parts: _Parts) -> QuantizedLinear | None:
        shards = {path: linear.out_features}
        if isinstance(linear, PackedLinear) and path not in parts:
            parent = path.rpartition(".")[0]
            shards = {f"{parent}.{name}": size for name, size in linear.shards.items()}
        sources = [
            self.source(shard, parts.get(shard, {}), linear.in_features, size)
            for shard, size in shards.items()
        ]
        if _is_dense(sources):
            return None
        cls = QuantizedPackedLinear if isinstance(linear, PackedLinear) else QuantizedLinear
        return cls(linear, sources)

    def _dequantize(
        self,
        path: str,
        layer: DenseLinear | Router,
        parts: _Parts,
        stored: MutableMapping[str, StoredTensor],
    ) -> None:
        """Make what is stored of a layer plain, for the model reads its weight itself."""
        out_features, in_features = layer.weight.shape
        source = self.source(path, parts.get(path, {}), in_features, out_features)
        if source.format.is_quantized:
            plain = source.plain(torch.float32)
            for name in source.expected():
                del stored[name]
            stored[plain.name] = plain

    def _experts(
        self, path: str, linear: ExpertLinear, parts: _Parts
    ) -> QuantizedExpertLinear | None:
        parent = path.rpartition(".")[0]
        experts = []
        for expert in range(linear.num_experts):
            if path in parts:
                stack = {
                    name: tensor.part(expert)
                    for name, tensor in parts[path].items()
                    if tensor.shape[:1] == (linear.num_experts,)
                }
                source = self.source(path, stack, linear.in_features, linear.out_features)
                sources = [source._replace(num_stacked=linear.num_experts)]
            else:
                shards = {f"{parent}.{expert}.{name}": n for name, n in linear.shards.items()}
                sources = [
                    self.source(shard, parts.get(shard, {}), linear.in_features, size)
                    for shard, size in shards.items()
                ]
            experts.append(sources)
        if all(map(_is_dense, experts)):
            return None
        template = Linear(linear.in_features, linear.out_features)
        return QuantizedExpertLinear(linear, [QuantizedLinear(template, own) for own in experts])

    def source(
        self, path: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> Source:
        """Where the weight of one projection comes from.

        Args:
            path: the projection's, in the names that the model has.
            tensors: as `format` takes them.
        """
        suffix, tensor = next(iter(tensors.items()), ("", None))
        name = path if tensor is None else tensor.name.removesuffix(suffix).removesuffix(".")
        own = self.format(name, tensors, in_features, out_features) if tensors else None
        return Source(path, own or DenseFormat(), in_features, out_features, tensors)


def _by_prefix(stored: Mapping[str, StoredTensor]) -> _Parts:
    """For each prefix of a name that ends before a dot: what is stored, by the rest of the name."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        for prefix, rest in _splits(name):
            parts.setdefault(prefix, {})[rest] = tensor
    return parts


def _splits(name: str) -> Iterator[tuple[str, str]]:
    for index, character in enumerate(name):
        if character == ".":
            yield name[:index], name[index + 1 :]


def _is_dense(sources: list[Source]) -> bool:
    return not any(source.format.is_quantized for source in sources)
