"""One of the engines that may serve a model, and how far it is."""

from __future__ import annotations

import asyncio

from axion.backends.base import InferenceBackend, ModelConfig
from axion.router.limiter import Limiter
from axion.types import BackendHealth, BackendState

LOADING = "It is being loaded."
NOT_LOADED = "It could not be loaded; the server's log says why."


class Candidate:
    """One engine.

    Attributes:
        model: what it is to load.
        limiter: gives its requests their places.
        starting: its start, from when it was begun.
        failure: why it could not be started.
    """

    def __init__(self, backend: InferenceBackend, model: ModelConfig, limiter: Limiter) -> None:
        self.backend = backend
        self.model = model
        self.limiter = limiter
        self.starting: asyncio.Task[None] | None = None
        self.failure: Exception | None = None

    @property
    def engine(self) -> str:
        return self.backend.engine

    @property
    def is_loading(self) -> bool:
        return self.starting is not None and not self.starting.done()

    @property
    def has_started(self) -> bool:
        return self.starting is not None and self.starting.done() and self.failure is None

    async def health(self) -> BackendHealth:
        """The backend's own word once it has started; before that, how far it is."""
        if self.has_started:
            return await self.backend.health()
        if self.failure is not None:
            return BackendHealth(state=BackendState.DOWN, detail=NOT_LOADED)
        if self.is_loading:
            return BackendHealth(state=BackendState.STARTING, detail=LOADING)
        return BackendHealth(state=BackendState.STOPPED, detail="It is not needed now.")
