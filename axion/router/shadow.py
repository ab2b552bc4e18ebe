"""Copies of requests to a second engine, to see whether it would have answered the same."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from axion.backends.base import InferenceBackend
from axion.errors import AxionError
from axion.observability.metrics import Metrics
from axion.openai.common import GenerationRequest
from axion.openai.delivered import Delivered
from axion.openai.features import features
from axion.router.candidate import Candidate

logger = logging.getLogger("axion.router")

# More at once would take the engine from those who wait for it.
_MAX_RUNNING = 4

# Starts a request on a backend.
Start = Callable[[InferenceBackend, Delivered | None], AsyncGenerator[Any, None]]


class Shadow:
    """Asks `candidate` again what another engine has answered, for a share of the requests.

    Only requests whose answer is the same every time (temperature 0) can be compared. Nobody waits
    for a copy, and what becomes of it is told in metrics alone.
    """

    def __init__(self, model: str, candidate: Candidate, share: float) -> None:
        self._model = model
        self._candidate = candidate
        self._share = share
        self._running: set[asyncio.Task[None]] = set()

    def offer(
        self,
        request: GenerationRequest,
        start: Start,
        answer: Delivered,
        answered_by: Candidate,
        metrics: Metrics | None,
    ) -> None:
        """Take or leave a request that has been answered."""
        if (
            request.temperature != 0
            or answered_by is self._candidate
            or not self._candidate.has_started
            or len(self._running) >= _MAX_RUNNING
            or self._candidate.backend.capabilities.missing(features(request))
            or random.random() >= self._share
        ):
            return
        copy = asyncio.create_task(self._compare(start, answer, metrics))
        self._running.add(copy)
        copy.add_done_callback(self._running.discard)

    async def stop(self) -> None:
        """End the copies that run."""
        for copy in self._running:
            copy.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _compare(self, start: Start, answer: Delivered, metrics: Metrics | None) -> None:
        other = Delivered()
        try:
            async with aclosing(start(self._candidate.backend, None)) as chunks:
                async for chunk in chunks:
                    other.take(chunk)
            result = "same" if other.says_the_same(answer) else "different"
        except AxionError as error:
            logger.info("a copy of a request failed on %s: %s", self._candidate.engine, error)
            result = "failed"
        if metrics is not None:
            metrics.shadowed(self._model, self._candidate.engine, result)
