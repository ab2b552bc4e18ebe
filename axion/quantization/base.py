"""What a format of quantized weights is made of.

A `QuantizationMethod` is what config.json's `quantization_config` asks for. It puts a
`QuantizedLinear` where the model has a linear layer whose weight is stored quantized, and says by
a `WeightFormat` how it is stored. That turns what is stored into a `Kernel`, which keeps the weight
and multiplies by it. Models know nothing of all this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from itertools import count, groupby
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers import onednn
from axion.layers.embedding import Embedding
from axion.layers.linear import DenseLinear, FusedLinear, Linear, PackedLinear
from axion.layers.moe import ExpertLinear, Groups, Router

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint, not read yet.

    Attributes:
        name: as it is stored; what a model calls it may differ.
        file: the name of its file, for messages.
        dtype: as safetensors calls it (`F32`, `I32`, `F8_E4M3`).
        read: its values, on the CPU. They may be mapped from the file: not to be written to.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    def part(self, index: int) -> StoredTensor:
        """One of those that are stacked along the first dimension."""
        return replace(self, shape=self.shape[1:], read=lambda: self.read()[index])


class Expected(NamedTuple):
    """What a stored tensor must be."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


class Kernel(nn.Module, ABC):
    """Keeps the weight of a linear layer, in its parameters, and multiplies by it.

    To override: `dequantize`, and `forward` where there is something better than a whole weight
    that lives as long as one multiplication.
    """

    @abstractmethod
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, `[out_features, in_features]`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return F.linear(x, self.dequantize(x.dtype))


class EmbeddingKernel(Kernel):
    """One whose weight is an embedding too. To override: `embed`."""

    @abstractmethod
    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `[n]` of the weight, `[n, in_features]`."""


class DenseKernel(EmbeddingKernel):
    """A weight that is not quantized: packed for oneDNN where it can be.

    Args:
        weight: `[out_features, in_features]`; what is kept is a copy.
        is_embedding: `embed` is called, so that it is packed only if its rows can still be read.
    """

    def __init__(self, weight: Tensor, *, is_embedding: bool = False) -> None:
        super().__init__()
        self.dtype = weight.dtype
        packed = onednn.pack(weight) if onednn.suits(weight) else None
        self.packed_rows: Tensor | None = None
        if packed is not None and is_embedding:
            self.packed_rows = onednn.rows_view(packed, weight)
            packed = None if self.packed_rows is None else packed
        self.is_packed = packed is not None
        kept = weight.clone() if packed is None else packed
        self.weight = nn.Parameter(kept, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_packed:
            return onednn.linear(x, self.weight)
        return F.linear(x, self.weight)

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.packed_rows is not None:
            return onednn.rows(self.packed_rows, input_ids, self.dtype).to(dtype)
        return F.embedding(input_ids, self.weight).to(dtype)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.to_dense() if self.is_packed else self.weight).to(dtype)


class WeightFormat(ABC):
    """How the weight of a linear layer is stored. A frozen dataclass: where those of q, k and v are
    equal, the three become one kernel.

    Attributes:
        joinable: whether they may.
        is_quantized: it is no plain weight.
    """

    joinable: bool = True
    is_quantized: ClassVar[bool] = True

    @abstractmethod
    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        """What must be stored, by the part of its name behind the layer's (`qweight`, `scales`)."""

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        """From what is stored to tensors whose first dimension is `out_features`, or that times a
        fixed fraction, so that layers are joined along it. They may not be changed in place."""
        return tensors

    @abstractmethod
    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        """The kernel for what was unpacked.

        Args:
            tensors: on the device of the model. Mapped from a file, perhaps: what the kernel keeps
                is a copy.
            dtype: of hidden states.
        """

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        """The same for a weight that is an embedding too."""
        raise NotImplementedError(f"{type(self).__name__} has no embeddings")

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        """Bytes that the kernel keeps."""
        tensors = self.expected(in_features, out_features).values()
        return sum(prod(shape) * _ITEM_SIZE[dtypes[-1]] for shape, dtypes in tensors)


_ITEM_SIZE = {
    **{"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
}


@dataclass(frozen=True)
class DenseFormat(WeightFormat):
    """A weight that is not quantized, beside others that are."""

    is_quantized: ClassVar[bool] = False

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {"weight": Expected((out_features, in_features))}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return DenseKernel(tensors["weight"].to(dtype))

    def embedding_kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> EmbeddingKernel:
        return DenseKernel(tensors["weight"].to(dtype), is_embedding=True)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return in_features * out_features * dtype.itemsize


class Source(NamedTuple):
    """Where the weight of one projection comes from.

    Attributes:
        path: the projection's, in the names that the model has.
        tensors: what is stored of it, by the part of the name behind `path`.
        num_stacked: so many projections are stored as one tensor, of which this is a part.
    """

    path: str
    format: WeightFormat
    in_features: int
    out_features: int
    tensors: Mapping[str, StoredTensor]
    num_stacked: int | None = None

    def expected(self) -> dict[str, Expected]:
        stack = () if self.num_stacked is None else (self.num_stacked,)
        parts = self.format.expected(self.in_features, self.out_features)
        return {
            f"{self.path}.{name}": Expected((*stack, *shape), dtypes)
            for name, (shape, dtypes) in parts.items()
        }

    def read(self, device: torch.device) -> dict[str, Tensor]:
        names = self.format.expected(self.in_features, self.out_features)
        tensors = {name: self.tensors[name].read().to(device) for name in names}
        return self.format.unpack(tensors, self.in_features, self.out_features)

    def dequantize(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The weight, `[out_features, in_features]`."""
        return self.format.kernel(self.read(device), dtype).dequantize(dtype)

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that its kernel keeps."""
        return self.format.num_bytes(self.in_features, self.out_features, dtype)


class QuantizedLinear(nn.Module):
    """Takes the place of a `Linear`, or of one with several projections.

    Attributes:
        sources: of the weights of its projections, in order; none where kernels were given.
    """

    def __init__(self, linear: Linear, sources: list[Source], kernel: Kernel | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.shards = linear.shards if isinstance(linear, FusedLinear) else None
        self.sources = sources
        self.kernels = nn.ModuleList([] if kernel is None else [kernel])
        self.register_parameter("bias", linear.bias)

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Read the weights; they must be what `Source.expected` says."""
        apart = count()

        def key(source: Source) -> object:
            return source.format if source.format.joinable else next(apart)

        for _, group in groupby(self.sources, key):
            [first, *others] = group
            tensors = first.read(device)
            if others:
                parts = [tensors, *(source.read(device) for source in others)]
                tensors = {name: torch.cat([part[name] for part in parts]) for name in tensors}
            self.kernels.append(first.format.kernel(tensors, dtype))
        self.sources = []

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """As the layer whose place it takes."""
        out = self._multiply(x)
        if self.bias is not None:
            out = out + self.bias
        return out if self.shards is None else out.split(tuple(self.shards.values()), dim=-1)

    def _multiply(self, x: Tensor) -> Tensor:
        if len(self.kernels) == 1:
            return self.kernels[0](x)
        return torch.cat([kernel(x) for kernel in self.kernels], dim=-1)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight, `[out_features, in_features]`."""
        return torch.cat([kernel.dequantize(dtype) for kernel in self.kernels])

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that the weights will take once they are loaded."""
        return sum(source.num_bytes(dtype) for source in self.sources)


class QuantizedPackedLinear(QuantizedLinear):
    """In the place of a `PackedLinear`: the biases, too, are stored apart."""

    shard_views = PackedLinear.shard_views


class QuantizedEmbedding(QuantizedLinear):
    """Takes the place of an `Embedding`, and computes for the head that shares its weight."""

    def __init__(self, embedding: Embedding, source: Source) -> None:
        num_embeddings, embedding_dim = embedding.weight.shape
        super().__init__(Linear(embedding_dim, num_embeddings), [source])

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        [source] = self.sources
        kernel = source.format.embedding_kernel(source.read(device), dtype)
        self.kernels.append(kernel)
        self.sources = []
        self.dtype = dtype

    def forward(self, input_ids: Tensor) -> Tensor:
        """`[n]` token ids to `[n, embedding_dim]`."""
        return self.kernels[0].embed(input_ids, self.dtype)

    def project(self, x: Tensor) -> Tensor:
        """`[..., embedding_dim]` to `[..., num_embeddings]`."""
        return self.kernels[0](x)


class TiedHead(nn.Module):
    """The head of a model whose embedding is a `QuantizedEmbedding`."""

    def __init__(self, head: Linear, embedding: QuantizedEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.register_parameter("bias", head.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.embedding.project(x)
        return logits if self.bias is None else logits + self.bias


class QuantizedExpertLinear(nn.Module):
    """Takes the place of an `ExpertLinear`: each expert is a layer of its own."""

    def __init__(self, linear: ExpertLinear, experts: list[QuantizedLinear]) -> None:
        super().__init__()
        self.num_experts, self.shards = linear.num_experts, linear.shards
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.experts = nn.ModuleList(experts)
        self.register_parameter("bias", linear.bias)

    shard_views = ExpertLinear.shard_views

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """`[num_rows, in_features]` to `[num_rows, out_features]`, each row by its expert."""
        out = x.new_empty(len(x), self.out_features)
        start = 0
        for expert, end in zip(self.experts, groups.ends.tolist(), strict=True):
            if end > start:
                out[start:end] = expert(x[start:end])
            start = end
        return out if self.bias is None else out + self.bias[groups.experts]


def quantized_experts(linear: ExpertLinear, kernels: Iterable[Kernel]) -> QuantizedExpertLinear:
    """Takes the place of an `ExpertLinear`, with a kernel for each expert."""
    template = Linear(linear.in_features, linear.out_features)
    return QuantizedExpertLinear(
        linear, [QuantizedLinear(template, [], kernel) for kernel in kernels]
    )


def stored_part(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters, and its buffers that are not computed from config.json."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def num_parameters(model: nn.Module) -> int:
    """How many numbers a model has learnt, however they are kept."""
    seen: set[nn.Parameter] = set()
    total = 0
    for module in model.modules():
        if isinstance(module, Kernel):
            continue
        if isinstance(module, QuantizedLinear):
            total += module.in_features * module.out_features
        own = set(module.parameters(recurse=False)) - seen
        total += sum(parameter.numel() for parameter in own)
        seen |= own
    return total


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

    def compact(self) -> QuantizationMethod | None:
        """The same with less memory and more time, where there is a choice."""
        return None

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


class StoredQuantized(QuantizationMethod):
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
            elif type(module) in (DenseLinear, Router):
                quantized = self._dequantized(path, module, parts)
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
        return module.dequantized(dtype) if isinstance(module, _Dequantized) else module

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

    def _dequantized(
        self, path: str, layer: DenseLinear | Router, parts: _Parts
    ) -> QuantizedLinear | None:
        out_features, in_features = layer.weight.shape
        source = self.source(path, parts.get(path, {}), in_features, out_features)
        return None if _is_dense([source]) else _Dequantized(layer, source)

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


class _Dequantized(QuantizedLinear):
    """Only while a model loads: a layer that needs its weight as it is, which is stored
    quantized."""

    def __init__(self, layer: DenseLinear | Router, source: Source) -> None:
        template = Linear(source.in_features, source.out_features)
        template.bias = layer.bias
        super().__init__(template, [source])
        self._layer = (layer,)  # not a part of this one

    def dequantized(self, dtype: torch.dtype) -> nn.Module:
        [layer] = self._layer
        layer.weight = nn.Parameter(self.dequantize(dtype), requires_grad=False)
        layer.bias = self.bias
        return layer

    def num_bytes(self, dtype: torch.dtype) -> int:
        return self.in_features * self.out_features * dtype.itemsize


_Parts = Mapping[str, Mapping[str, StoredTensor]]


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
