"""Which class serves an architecture. The classes say so themselves; there is no table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

import axion.models
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.models.encoder import Encoder
from axion.models.transformers_fallback import fallback_class

ENTRY_POINT_GROUP = "axion.models"

ModelT = TypeVar("ModelT", CausalLM, Encoder)
ClassT = TypeVar("ClassT")


@cache
def model_classes() -> dict[str, type[CausalLM]]:
    """Architecture name to class, of the models that write text.

    They come from the modules of `axion.models` and then from plug-ins. A plug-in is an entry
    point of the group `axion.models` whose object is a `CausalLM` or an `Encoder`.
    """
    return _classes(CausalLM)


@cache
def embedding_classes() -> dict[str, type[CausalLM] | type[Encoder]]:
    """Architecture name to class, of the models that make embeddings.

    These are the encoders, and every decoder, with its head (`Qwen3ForCausalLM`) and as it is
    called without (`Qwen3Model`).
    """
    decoders = model_classes()
    headless = {name.replace("ForCausalLM", "Model"): cls for name, cls in decoders.items()}
    return headless | decoders | _classes(Encoder)


def load_model_class(architectures: list[str], *, has_remote_code: bool = False) -> type[CausalLM]:
    """The class of the first of `architectures` that writes text; where none has one of Axion's
    own, transformers' class.

    Args:
        architectures: as in config.json.
        has_remote_code: config.json has an `auto_map`, so the repository brings Python of its
            own. It is never run; the message says so.

    Raises:
        ModelLoadError: there is no class; the message lists what there is.
    """
    if model_classes().keys().isdisjoint(architectures):
        for name in architectures:
            if (cls := fallback_class(name)) is not None:
                return cls
    return _first(architectures, model_classes(), has_remote_code)


def load_embedding_class(
    architectures: list[str], *, has_remote_code: bool = False
) -> type[CausalLM] | type[Encoder]:
    """The same as `load_model_class`, for embeddings."""
    return _first(architectures, embedding_classes(), has_remote_code)


def _classes(base: type[ModelT]) -> dict[str, type[ModelT]]:
    found: dict[str, type[ModelT]] = {}

    def register(objects: Iterable[object]) -> None:
        for cls in objects:
            if isinstance(cls, type) and issubclass(cls, base):
                for name in vars(cls).get("architectures", ()):  # its own, not its parent's
                    found.setdefault(name, cls)

    for module in pkgutil.iter_modules(axion.models.__path__):
        register(vars(importlib.import_module(f"axion.models.{module.name}")).values())
    register(plugin.load() for plugin in entry_points(group=ENTRY_POINT_GROUP))
    return found


def _first(architectures: list[str], classes: dict[str, ClassT], has_remote_code: bool) -> ClassT:
    for name in architectures:
        if name in classes:
            return classes[name]
    reason = (
        " The model brings its own Python code (auto_map), which Axion never runs."
        if has_remote_code
        else ""
    )
    raise ModelLoadError(
        f"The architecture {', '.join(architectures)[:200]} is not supported.{reason} "
        f"Supported: {', '.join(sorted(classes))}."
    )
