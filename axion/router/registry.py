"""The models being served: a name for each, the backend behind it, and whether it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from axion.backends.base import InferenceBackend, ModelConfig
from axion.errors import EngineUnavailableError, InvalidRequestError, ModelNotFoundError
from axion.types import BackendHealth, BackendState

# How much of a client's string an error repeats.
_MAX_ECHO = 100


class ServedModel:
    """One model and the backend that serves it.

    Attributes:
        created: seconds since the epoch at which the server took the model up.
        engine: what serves it, for people to read (`native`).
    """

    def __init__(self, model: ModelConfig, backend: InferenceBackend, engine: str) -> None:
        self.model = model
        self.backend = backend
        self.engine = engine
        self.created = int(time.time())
        self._state = BackendState.STARTING
        self._detail = "It is being loaded."

    @property
    def name(self) -> str:
        return self.model.name

    async def start(self) -> None:
        """Load the model; returns when it can answer.

        Raises:
            AxionError: it cannot be had; the state is then down.
        """
        try:
            await self.backend.start(self.model)
        except Exception:
            self._state = BackendState.DOWN
            self._detail = "It could not be loaded; the server's log says why."
            raise
        self._state = BackendState.READY

    async def health(self) -> BackendHealth:
        """The backend's own word once it has started; before that, how far it is."""
        if self._state is BackendState.READY:
            return await self.backend.health()
        return BackendHealth(state=self._state, detail=self._detail)

    def require_ready(self) -> InferenceBackend:
        """The backend, for one request.

        Raises:
            EngineUnavailableError: the model has not started, or has been stopped.
        """
        if self._state is not BackendState.READY:
            raise EngineUnavailableError(f"The model is {self._state}. {self._detail}")
        return self.backend

    async def stop(self, drain_s: float) -> None:
        """Let running requests finish for `drain_s` seconds, then end."""
        await self.backend.stop(drain_s)
        self._state = BackendState.STOPPED
        self._detail = "The server is shutting down."


class ModelRegistry:
    """The served models, by the name that clients use."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}

    def add(
        self, model: ModelConfig, backend: InferenceBackend, *, engine: str = "native"
    ) -> ServedModel:
        """Serve `model` by `backend`; it answers after `start`."""
        assert model.name not in self._models, f"{model.name} is served already"
        served = ServedModel(model, backend, engine)
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
