"""What one app knows, and how many generation requests it lets in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.types import Scope

from axion.errors import EngineUnavailableError, QueueFullError
from axion.observability.metrics import Metrics
from axion.router.registry import ModelRegistry
from axion.server.response_cache import ResponseCache
from axion.settings import Settings


@dataclass
class ServerState:
    """Found at `app.state.server`.

    Attributes:
        num_arriving_bytes: of bodies that are not complete yet.
        num_in_flight: generation requests admitted and not yet answered in full.
        draining: the server is shutting down: running requests finish, new ones get 503.
    """

    settings: Settings
    registry: ModelRegistry
    num_arriving_bytes: int = 0
    num_in_flight: int = 0
    draining: bool = False
    started: float = field(default_factory=time.monotonic)
    metrics: Metrics = field(init=False)
    cache: ResponseCache = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.cache = ResponseCache(
            settings.cache_capacity, settings.cache_max_bytes, settings.cache_policy
        )
        self.metrics = Metrics(
            num_in_flight=lambda: self.num_in_flight,
            num_cached=lambda: len(self.cache),
            num_cached_bytes=lambda: self.cache.num_bytes,
        )

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the `max_connections` places.

        Raises:
            EngineUnavailableError: the server is shutting down.
            QueueFullError: all places are taken.
        """
        if self.draining:
            raise EngineUnavailableError(
                "The server is shutting down. Send the request again in a moment.",
                headers={"Connection": "close"},
            )
        if self.num_in_flight >= self.settings.max_connections:
            raise QueueFullError(
                f"{self.num_in_flight} requests are in flight, which is all this server admits. "
                "Send the request again in a moment."
            )
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1


def server_state(scope: Scope) -> ServerState:
    """The state of the app that handles `scope`."""
    state: ServerState = scope["app"].state.server
    return state
