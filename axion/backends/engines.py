"""Which engines there are: Axion's own list, and what installed packages add to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from axion.backends.base import InferenceBackend
from axion.backends.facts import EngineFacts
from axion.backends.spawned import SpawnedBackend
from axion.errors import ModelLoadError
from axion.settings import Settings

PLUGIN_GROUP = "axion.backends"

# Where each class is; none is imported before it is asked for.
_HOMES = {
    "max": "axion.backends.max:MaxBackend",
    "vllm": "axion.backends.vllm:VllmBackend",
    "sglang": "axion.backends.sglang:SglangBackend",
    "tensorrt_llm": "axion.backends.tensorrt_llm:TensorRTLLMBackend",
    "tgi": "axion.backends.tgi:TgiBackend",
    "llama_cpp": "axion.backends.llama_cpp:LlamaCppBackend",
    "native": "axion.backends.native.backend:NativeBackend",
    "remote": "axion.backends.remote:RemoteBackend",
}


class Engine(Protocol):
    """What the class of a backend gives, so that its engine can be chosen.

    A package adds one as an entry point of the group `axion.backends`: its name is the engine's,
    its object a class such as this one, most simply a subclass of `SpawnedBackend`.
    """

    async def facts(self, settings: Settings) -> EngineFacts:
        """What is known of the engine on this machine. It may ask the engine, in a child process
        and once for each version."""
        ...

    def from_settings(
        self, settings: Settings, on_progress: Callable[[int, int], None]
    ) -> InferenceBackend:
        """A backend, not started.

        Args:
            on_progress: may be called with the bytes of weights that are read, and all of them.
        """
        ...


def engine_names() -> tuple[str, ...]:
    """All engines, installed or not, plug-ins last."""
    return tuple(dict.fromkeys((*_HOMES, *_plugins())))


def load_engine(name: str) -> Engine | None:
    """The class of an engine; None if there is no such engine.

    Raises:
        ModelLoadError: it comes with a package that cannot be loaded.
    """
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return cast(Engine, getattr(import_module(module), attribute))
    plugin = _plugins().get(name)
    if plugin is None:
        return None
    try:
        engine = plugin.load()
    except Exception as error:  # whatever somebody else's module raises
        package = plugin.dist.name if plugin.dist is not None else plugin.module
        raise ModelLoadError(
            f"The engine {name}, which the package {package} adds, cannot be loaded: {error!r}."
        ) from error
    if not (hasattr(engine, "facts") and hasattr(engine, "from_settings")):
        raise ModelLoadError(f"The engine {name} ({plugin.value}) is not the class of a backend.")
    return cast(Engine, engine)


def spawned_engines() -> list[type[SpawnedBackend]]:
    """Those whose server Axion spawns; a plug-in that cannot be loaded is left out."""
    found: list[Any] = []
    for name in engine_names():
        with contextlib.suppress(ModelLoadError):
            found.append(load_engine(name))
    return [x for x in found if isinstance(x, type) and issubclass(x, SpawnedBackend)]


def _plugins() -> dict[str, EntryPoint]:
    return {plugin.name: plugin for plugin in entry_points(group=PLUGIN_GROUP)}
