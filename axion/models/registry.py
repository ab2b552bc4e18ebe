"""Which class serves an architecture. The classes say so themselves; there is no table."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import axion.models
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.models.encoder import Encoder
from axion.models.seeing import SeeingForConditionalGeneration, text_part
from axion.models.transformers_fallback import TransformersCausalLM, fallback_class

ENTRY_POINT_GROUP = "axion.models"

logger = logging.getLogger("axion.models")

ModelT = TypeVar("ModelT", CausalLM, Encoder)
ClassT = TypeVar("ClassT")


def model_classes() -> dict[str, type[CausalLM]]:
    """Architecture name to class, of the models that write text.

    They come from the modules of `axion.models` and then from plug-ins. A plug-in is an entry
    point of the group `axion.models` whose object is a `CausalLM` or an `Encoder`.
    """
    return _classes(CausalLM)


def embedding_classes() -> dict[str, type[CausalLM] | type[Encoder]]:
    """Architecture name to class, of the models that make embeddings.

    These are the encoders, and every decoder, with its head (`Qwen3ForCausalLM`) and as it is
    called without (`Qwen3Model`).
    """
    decoders = model_classes()
    headless = {name.replace("ForCausalLM", "Model"): cls for name, cls in decoders.items()}
    return headless | decoders | _classes(Encoder)


def load_model_class(config: dict[str, Any]) -> type[CausalLM]:
    """The class of the first architecture in config.json that writes text; where none has one of
    Axion's own, transformers' class.

    Raises:
        ModelLoadError: there is no class, and the message says where those are listed that there
            are, and that Python in the repository (`auto_map`) is never run; or its file is
            broken.
    """
    if model_classes().keys().isdisjoint(config["architectures"]):
        for name in config["architectures"]:
            _refuse_broken(name)
            if (cls := fallback_class(name)) is not None:
                return cls
    return _first(config, model_classes(), "docs/models.md lists those that are.")


def load_embedding_class(config: dict[str, Any]) -> type[CausalLM] | type[Encoder]:
    """The same as `load_model_class`, for embeddings, which transformers' classes do not make."""
    encoders = ", ".join(sorted(_classes(Encoder)))
    supported = f"Encoders that are: {encoders}; and so is every decoder of docs/models.md."
    cls = _first(config, embedding_classes(), supported)
    if issubclass(cls, TransformersCausalLM):
        raise ModelLoadError(
            f"{cls.__name__[:80]} makes no embeddings with a text model that has no class of "
            "Axion's own."
        )
    return cls


class Scan(NamedTuple):
    """What there is of models.

    Attributes:
        objects: what the modules and the plug-ins hold.
        broken: modules that cannot be imported, and why.
    """

    objects: list[object]
    broken: dict[str, str]


@cache
def scan() -> Scan:
    """Import the modules of `axion.models` and the plug-ins, once."""
    objects: list[object] = []
    broken: dict[str, str] = {}

    def cannot(name: str, error: Exception) -> None:
        logger.error("%s cannot be imported", name, exc_info=error)
        reason = re.sub(r" \(/.*\)$", "", str(error))  # of an ImportError, which has a path
        broken[name] = f"{type(error).__name__}: {reason}"

    for module in pkgutil.iter_modules(axion.models.__path__, "axion.models."):
        try:
            objects += vars(importlib.import_module(module.name)).values()
        except Exception as error:  # whatever a module does when it is imported
            cannot(module.name, error)
    for plugin in entry_points(group=ENTRY_POINT_GROUP):
        try:
            objects.append(plugin.load())
        except Exception as error:
            cannot(plugin.module, error)
    return Scan(objects, broken)


def _classes(base: type[ModelT]) -> dict[str, type[ModelT]]:
    found: dict[str, type[ModelT]] = {}
    for cls in scan().objects:
        if isinstance(cls, type) and issubclass(cls, base):
            for name in vars(cls).get("architectures", ()):  # its own, not its parent's
                found.setdefault(name, cls)
    return found


def _refuse_broken(architecture: str) -> None:
    """Raises: ModelLoadError: a module that cannot be imported speaks of `architecture`."""
    names = {f'"{architecture}"', f'"{architecture.removesuffix("Model")}ForCausalLM"'}
    for module, reason in scan().broken.items():
        spec = find_spec(module) if module.startswith("axion.models.") else None
        if spec is None or spec.origin is None:
            continue
        source = Path(spec.origin).read_text(errors="replace")
        if any(name in source for name in names):
            raise ModelLoadError(
                f"The architecture {architecture} cannot be served: its module {module} cannot be "
                f"imported ({reason})."
            )


def _first(
    config: dict[str, Any], classes: dict[str, ClassT], supported: str
) -> ClassT | type[CausalLM]:
    architectures = config["architectures"]
    for name in architectures:
        if name in classes:
            is_part = classes[name] is SeeingForConditionalGeneration
            return text_part(name, config, model_classes()) if is_part else classes[name]
        _refuse_broken(name)
    reason = (
        " The model brings its own Python code (auto_map), which Axion never runs."
        if config.get("auto_map") is not None
        else ""
    )
    reason += "".join(
        f" {module} cannot be imported ({why})." for module, why in scan().broken.items()
    )
    raise ModelLoadError(
        f"The architecture {', '.join(architectures)[:200]} is not supported.{reason} {supported}"
    )
