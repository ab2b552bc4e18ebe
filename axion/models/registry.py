"""Which class serves an architecture. The classes say so themselves; there is no table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

import axion.models
from axion.errors import ModelLoadError
from axion.models.base import CausalLM

ENTRY_POINT_GROUP = "axion.models"


@cache
def model_classes() -> dict[str, type[CausalLM]]:
    """Architecture name to class, from the modules of `axion.models` and then from plug-ins.

    A plug-in is an entry point of the group `axion.models` whose object is a `CausalLM`.
    """
    found: dict[str, type[CausalLM]] = {}
    for module in pkgutil.iter_modules(axion.models.__path__):
        contents = vars(importlib.import_module(f"axion.models.{module.name}")).values()
        _register(found, (x for x in contents if isinstance(x, type) and issubclass(x, CausalLM)))
    _register(found, (plugin.load() for plugin in entry_points(group=ENTRY_POINT_GROUP)))
    return found


def _register(found: dict[str, type[CausalLM]], classes: Iterable[type[CausalLM]]) -> None:
    for cls in classes:
        for name in vars(cls).get("architectures", ()):  # its own, not its parent's
            found.setdefault(name, cls)


def load_model_class(architectures: list[str], *, has_remote_code: bool = False) -> type[CausalLM]:
    """The class for the first of `architectures` that there is one for.

    Args:
        architectures: as in config.json.
        has_remote_code: config.json has an `auto_map`, so the repository brings Python of its
            own. It is never run; the message says so.

    Raises:
        ModelLoadError: there is no class; the message lists what there is.
    """
    classes = model_classes()
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
