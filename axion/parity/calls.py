"""What a model's modules are called with, and what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from axion.layers.linear import FusedLinear, PackedLinear
from axion.models.base import CausalLM

Key = tuple[str, int]
"""Path of a module of transformers, and which of its calls."""


@dataclass
class Call:
    """A module's call in the reference; tensors of floating-point numbers only.

    Attributes:
        routing: weights of the experts, sorted, where it is called with some.
    """

    key: Key
    input: Tensor | None
    routing: Tensor | None = None
    output: Tensor | None = None
    children: list[Call] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.key[0]


class Seen(NamedTuple):
    """Our side of a call."""

    input: Tensor | None = None
    output: Tensor | None = None
    routing: Tensor | None = None


NOTHING = Seen()


@contextmanager
def trace(model: nn.Module) -> Iterator[Call]:
    """The tree of the calls that happen meanwhile; the root is the model's own."""
    root = Call(("", 0), None)
    running, counts = [root], Counter[str]()

    def before(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        call = Call((path, counts[path]), _first_tensor(given), _routing(given))
        counts[path] += 1
        running[-1].children.append(call)
        running.append(call)

    def after(output: Any) -> None:
        found = _first_tensor([output])
        # Whoever takes it may write into it.
        running.pop().output = None if found is None else found.clone()

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                hooks.enter_context(
                    module.register_forward_pre_hook(
                        lambda _, args, kwargs, path=path: before(path, args, kwargs),
                        with_kwargs=True,
                    )
                )
                hooks.enter_context(
                    module.register_forward_hook(lambda _, args, output: after(output))
                )
        yield root


@contextmanager
def observe(model: CausalLM, pairs: dict[str, str]) -> Iterator[dict[Key, Seen]]:
    """Input and output of each of our modules' calls, under the reference's paths."""
    theirs = {own: path for path, own in pairs.items()}
    seen: dict[Key, Seen] = {}
    counts = Counter[str]()

    def record(path: str, args: tuple[Any, ...], output: Tensor | None) -> None:
        if path in theirs:
            seen[theirs[path], counts[path]] = Seen(_first_tensor(args), output, _routing(args))
            counts[path] += 1

    def after(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, PackedLinear):
            parent = path.rpartition(".")[0]
            for shard, part in zip(module.shards, output, strict=True):
                record(f"{parent}.{shard}", args, part)
        elif isinstance(module, FusedLinear):
            record(path, args, torch.cat(output, dim=-1))
        else:
            record(path, args, _first_tensor([output]))

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            hooks.enter_context(
                module.register_forward_hook(
                    lambda module, args, output, path=path: after(path, module, args, output)
                )
            )
        yield seen


def _first_tensor(values: Any) -> Tensor | None:
    for value in values:
        if isinstance(value, tuple | list):
            value = _first_tensor(value)
        elif isinstance(value, dict):  # as transformers' outputs are
            value = _first_tensor(value.values())
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def _routing(args: tuple[Any, ...]) -> Tensor | None:
    """Of hidden states, experts and weights, in any order of the last two, the weights."""
    tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.dim() == 2]
    if len(tensors) != 3 or sum(tensor.is_floating_point() for tensor in tensors) != 2:
        return None
    weights = next(tensor for tensor in tensors[1:] if tensor.is_floating_point())
    return weights.sort(-1).values  # nor has the order of the experts a meaning
