"""The models being served, by the name that clients use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from axion.backends.base import InferenceBackend, ModelConfig
from axion.errors import InvalidRequestError, ModelNotFoundError
from axion.router.plan import Begin, Plan
from axion.router.served import Planner, RoutingPolicy, ServedModel
from axion.types import BackendHealth

# How much of a client's string an error repeats.
_MAX_ECHO = 100


class ModelRegistry:
    """The served models, by the name that clients use."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def add(
        self, model: ModelConfig, *backends: InferenceBackend, policy: RoutingPolicy | None = None
    ) -> ServedModel:
        """Serve `model` by `backends`, the one that is wanted most first; see `add_planned`."""

        async def plan(begin: Begin) -> Plan:
            return Plan([(backend, model) for backend in backends])

        return self.add_planned(model, plan, policy)

    def add_planned(
        self, model: ModelConfig, planner: Planner, policy: RoutingPolicy | None = None
    ) -> ServedModel:
        """Serve `model` by the engines that `planner` gives when it is started."""
        assert model.name not in self._models, f"{model.name} is served already"
        served = ServedModel(model, planner, policy or RoutingPolicy())
        self._models[model.name] = served
        return served

    def get(self, name: str | None) -> ServedModel:
        """The model that clients call `name`; without one, the only model there is.

        Raises:
            ModelNotFoundError: no such model; the message names those that are served.
            InvalidRequestError: no name, and several models.
        """
        if name is None:
            if len(self._models) != 1:
                raise InvalidRequestError(
                    f"model is required here. Served: {', '.join(self._models)}.", param="model"
                )
            (name,) = self._models
        served = self._models.get(name)
        if served is None:
            shown = name if len(name) <= _MAX_ECHO else f"{name[:_MAX_ECHO]}…"
            raise ModelNotFoundError(
                f"The model {shown!r} is not served here. Served: {', '.join(self._models)}.",
                param="model",
            )
        return served

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    async def start(self) -> None:
        """Load all models, each in its own time.

        Raises:
            AxionError: the first one that cannot be had.
        """
        await asyncio.gather(*(served.start() for served in self))

    async def stop(self, drain_s: float) -> None:
        """Stop all models; `drain_s` seconds for their running requests."""
        await asyncio.gather(*(served.stop(drain_s) for served in self))

    async def health(self) -> dict[str, BackendHealth]:
        """Health by model name."""
        return {served.name: await served.health() for served in self}
