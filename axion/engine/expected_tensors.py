"""The tensors that a checkpoint must hold of a model, and where they go in it."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.quantization.layers import QuantizedLinear
from axion.quantization.stored import FLOATS, Expected, StoredTensor, stored_part

_INTEGERS = ("I64", "I32")


def expected_tensors(model: CausalLM) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a checkpoint of `model` must hold."""
    return {name: expected.shape for name, expected in expected_of(model).items()}


def destinations(path: str, module: nn.Module, stored: Collection[str]) -> list[tuple[str, Tensor]]:
    """The tensors that a checkpoint must hold of a module alone, and where they go.

    What is packed in the model may be stored apart, as is expected, or packed.
    """
    views = dict(stored_part(module))
    if hasattr(module, "stored_views"):
        views = module.stored_views()
    own = {f"{path}.{name}": view for name, view in views.items()}
    if hasattr(module, "shard_views") and own.keys().isdisjoint(stored):
        parent = path.rpartition(".")[0]
        return [(f"{parent}.{name}", view) for name, view in module.shard_views().items()]
    return list(own.items())


def expected_of(model: nn.Module, stored: Collection[str] = ()) -> dict[str, Expected]:
    """Every tensor that a checkpoint of `model` must hold."""
    seen: set[Tensor] = set()
    expected: dict[str, Expected] = {}
    for path, module in model.named_modules():
        for name, place in destinations(path, module, stored):
            if place not in seen:  # a tied head is its embedding
                seen.add(place)
                dtypes = FLOATS if place.is_floating_point() else _INTEGERS
                expected[name] = Expected(tuple(place.shape), dtypes)
        if isinstance(module, QuantizedLinear):
            for source in module.sources:
                expected |= source.expected()
    return expected


def check_stored(stored: dict[str, StoredTensor], expected: dict[str, Expected]) -> None:
    """Compare every name, shape and number format, in both directions.

    Raises:
        ModelLoadError: they differ; the message names the tensors.
    """
    faults = [f"{name} is missing" for name in expected if name not in stored]
    for name, tensor in stored.items():
        if name not in expected:
            faults.append(f"{name[:200]!r} {list(tensor.shape)} is not part of the architecture")
            continue
        shape, dtypes = expected[name]
        if tensor.shape != shape:
            faults.append(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in dtypes:
            one_of = "one of " if len(dtypes) > 1 else ""
            faults.append(
                f"{name} is stored as {tensor.dtype}, expected {one_of}{', '.join(dtypes)}"
            )
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ModelLoadError(
            f"The weights are not what config.json describes: {'; '.join(faults[:5])}{more}."
        )
