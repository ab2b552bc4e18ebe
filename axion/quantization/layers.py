"""The layers that take the place of a model's: they multiply by kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import count, groupby
from typing import TypeVar

import torch
from torch import Tensor, nn

from axion.layers import kernels
from axion.layers.cpu_kernels.weights import PackedExperts, packed_experts
from axion.layers.embedding import Embedding
from axion.layers.kernels.weights import LowBitExperts, low_bit_experts
from axion.layers.linear import FusedLinear, Linear, PackedLinear
from axion.layers.moe import ExpertLinear, Groups
from axion.quantization.format import Source
from axion.quantization.kernel import Kernel

_Stack = TypeVar("_Stack", LowBitExperts, PackedExperts)


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
        if self.shards is None:
            return out
        return out.split_with_sizes(tuple(self.shards.values()), dim=-1)

    def _multiply(self, x: Tensor) -> Tensor:
        products = [kernel(x) for kernel in self.kernels]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

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
        kernel, weights = kernels.of("grouped", x), self._stacked(x)
        if kernel is not None and weights is not None:
            parts = [kernel.grouped_product(x, weight, groups.ends) for weight in weights]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        else:
            out = self._one_by_one(x, groups.ends.tolist())
        return out if self.bias is None else out + self.bias[groups.experts]

    def _stacked(self, x: Tensor) -> Sequence[LowBitExperts | PackedExperts] | None:
        """What multiplies all rows at once where `x` is, if that is faster."""
        if kernels.run_on(x):
            return self.low_bit
        is_faster = self.packed is not None and len(x) <= self._max_rows
        return self.packed if is_faster else None

    @cached_property
    def low_bit(self) -> list[LowBitExperts] | None:
        """The weights as Triton's kernels read them where they lie, once they are loaded; None:
        their format is not known, or differs from expert to expert."""
        return self._by_part(
            lambda part: low_bit_experts([kernel.low_bit() for kernel in part]),
        )

    @cached_property
    def packed(self) -> list[PackedExperts] | None:
        """The same for the kernels of the CPU."""
        return self._by_part(
            lambda part: packed_experts([kernel.packed_weight() for kernel in part])
        )

    @cached_property
    def _max_rows(self) -> int:
        """Rows of all experts, each of which has as many as the product is the fastest of."""
        assert self.packed is not None
        return min(part.first.max_rows for part in self.packed) * self.num_experts

    def _by_part(
        self, describe: Callable[[Sequence[Kernel]], _Stack | None]
    ) -> list[_Stack] | None:
        if len({len(expert.kernels) for expert in self.experts}) > 1:
            return None
        by_part = zip(*(expert.kernels for expert in self.experts), strict=True)
        parts = [describe(part) for part in by_part]
        known = [part for part in parts if part is not None]
        return known if len(known) == len(parts) else None

    def _one_by_one(self, x: Tensor, ends: list[int]) -> Tensor:
        out = x.new_empty(len(x), self.out_features)
        start = 0
        for expert, end in zip(self.experts, ends, strict=True):
            if end > start:
                out[start:end] = expert(x[start:end])
            start = end
        return out


def quantized_experts(linear: ExpertLinear, kernels: Iterable[Kernel]) -> QuantizedExpertLinear:
    """Takes the place of an `ExpertLinear`, with a kernel for each expert."""
    template = Linear(linear.in_features, linear.out_features)
    return QuantizedExpertLinear(
        linear, [QuantizedLinear(template, [], kernel) for kernel in kernels]
    )


def unknown_formats(model: nn.Module) -> list[str]:
    """The kernels of those experts that are computed one by one on CUDA, too, after the host has
    waited for the device to learn which rows each of them has."""
    names = {
        type(module).__name__
        for layer in model.modules()
        if isinstance(layer, QuantizedExpertLinear) and layer.low_bit is None
        for module in layer.experts.modules()
        if isinstance(module, Kernel)
    }
    return sorted(names)


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
