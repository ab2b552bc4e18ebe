"""The way of one request: which engine answers it, and who goes on when that one fails."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from typing import TypeVar

from axion.backends.base import InferenceBackend, PreparedChat, Tokenization
from axion.errors import (
    AxionError,
    CannotContinueError,
    EngineUnavailableError,
    QueueFullError,
)
from axion.observability.metrics import Metrics
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.common import GenerationRequest
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered
from axion.openai.features import features
from axion.router.candidate import Candidate
from axion.router.served import ServedModel

logger = logging.getLogger("axion.router")

ChunkT = TypeVar("ChunkT", ChatCompletionChunk, CompletionChunk)
# Starts the request on a backend: (backend, what the client has of the answer).
Run = Callable[[InferenceBackend, Delivered | None], AsyncGenerator[ChunkT, None]]


class Route:
    """Answers one request by the best of a model's engines that honours it.

    When an engine fails before it has sent anything, another one gets the request; when it fails
    later, another one goes on from what the client has. The client notices a pause at most. One
    that is busy has its requests taken by another that runs; none is loaded for that, and the
    client is told when to come back if all are busy.

    Attributes:
        engine: who answers; empty until somebody does.
    """

    def __init__(self, served: ServedModel, metrics: Metrics | None = None) -> None:
        self.engine = ""
        self._served = served
        self._metrics = metrics

    async def prepare_chat(self, request: ChatCompletionRequest) -> PreparedChat:
        """As `InferenceBackend.prepare_chat`."""
        candidate = await self._choose(request)
        prepared = await candidate.backend.prepare_chat(request)

        def run(request_id: str) -> AsyncGenerator[ChatCompletionChunk, None]:
            def start(
                backend: InferenceBackend, delivered: Delivered | None
            ) -> AsyncGenerator[ChatCompletionChunk, None]:
                if backend is candidate.backend and delivered is None:
                    return prepared.run(request_id)
                return backend.chat(request, request_id, delivered=delivered)

            return self._answer(request, start, candidate)

        return PreparedChat(prepared.cache_key, prepared.is_deterministic, run)

    def chat(
        self, request: ChatCompletionRequest, request_id: str
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """As `InferenceBackend.chat`."""
        return self._answer(
            request,
            lambda backend, delivered: backend.chat(request, request_id, delivered=delivered),
        )

    def complete(
        self, request: CompletionRequest, request_id: str
    ) -> AsyncGenerator[CompletionChunk, None]:
        """As `InferenceBackend.complete`."""
        return self._answer(
            request,
            lambda backend, delivered: backend.complete(request, request_id, delivered=delivered),
        )

    async def tokenize(
        self,
        prompt: str | ChatCompletionRequest,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        """As `InferenceBackend.tokenize`."""
        candidate = await self._choose()
        return await candidate.backend.tokenize(
            prompt, add_special_tokens=add_special_tokens, with_strings=with_strings
        )

    async def detokenize(self, token_ids: list[int]) -> str:
        """As `InferenceBackend.detokenize`."""
        candidate = await self._choose()
        return await candidate.backend.detokenize(token_ids)

    async def _choose(
        self,
        request: GenerationRequest | None = None,
        failed: Collection[Candidate] = (),
        *,
        may_load: bool = True,
    ) -> Candidate:
        wanted = features(request) if request is not None else ()
        candidate = await self._served.choose(wanted, failed, may_load=may_load)
        self.engine = candidate.engine
        return candidate

    async def _answer(
        self, request: GenerationRequest, start: Run[ChunkT], first: Candidate | None = None
    ) -> AsyncGenerator[ChunkT, None]:
        delivered = Delivered()
        created: int | None = None
        failed: list[Candidate] = []
        failure: AxionError | None = None
        while True:
            is_busy = isinstance(failure, QueueFullError)
            try:
                candidate = first or await self._choose(request, failed, may_load=not is_busy)
            except AxionError as error:
                raise failure or error from None
            first = None
            try:
                async with candidate.limiter.place(request.priority or 0) as place:
                    if self._metrics is not None:
                        self._metrics.routed(self._served.name, candidate.engine, place.waited_s)
                    chunks = start(candidate.backend, delivered if delivered.started else None)
                    async with aclosing(chunks):
                        async for chunk in chunks:
                            place.begin()
                            delivered.take(chunk)
                            # Of one answer, whoever gives it.
                            created = chunk.created if created is None else created
                            chunk.created = created
                            yield chunk
                break
            except (QueueFullError, EngineUnavailableError) as error:
                # Of several reasons, that an engine is busy is the one that passes.
                if not (is_busy or isinstance(error, CannotContinueError)):
                    failure = error
                failed.append(candidate)
                self._tell_failure(candidate, delivered, error)
                if delivered.started and request.needs_one_engine:
                    raise
        shadow = self._served.shadow
        if shadow is not None:
            shadow.offer(request, start, delivered, candidate, self._metrics)

    def _tell_failure(
        self,
        candidate: Candidate,
        delivered: Delivered,
        error: QueueFullError | EngineUnavailableError,
    ) -> None:
        if isinstance(error, EngineUnavailableError):  # of a busy one each request would tell
            when = "in mid-answer" if delivered.started else "before its answer"
            logger.warning("%s failed %s: %s", candidate.engine, when, error.message)
        if self._metrics is not None:
            self._metrics.failed_over(
                self._served.name, candidate.engine, started=delivered.started
            )
