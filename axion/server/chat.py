"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from axion.backends.base import InferenceBackend
from axion.openai.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    collect_chat,
)
from axion.server.generation import GenerationEndpoint, new_request_id
from axion.server.response_cache import CachedAnswer, CacheResult, cache_directives
from axion.server.state import server_state


class ChatCompletions(GenerationEndpoint[ChatCompletionRequest, ChatCompletionChunk]):
    request_type = ChatCompletionRequest

    def generate(
        self, backend: InferenceBackend, request: ChatCompletionRequest, request_id: str
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return backend.chat(request, request_id)

    async def respond(
        self, scope: Scope, backend: InferenceBackend, request: ChatCompletionRequest, model: str
    ) -> Response:
        """From the response cache if it has the answer."""
        state = server_state(scope)
        directives = cache_directives(Headers(scope=scope).getlist("cache-control"))
        if not state.cache.is_on or "no-store" in directives:
            chunks = self.generate(backend, request, new_request_id())
            answer = CachedAnswer(await self.whole(scope, chunks, model), CacheResult.BYPASS)
        else:
            prepared = await backend.prepare_chat(request)

            async def compute() -> bytes:
                return await self.whole(scope, prepared.run(new_request_id()), model)

            answer = await state.cache.answer(
                prepared.cache_key,
                compute,
                is_deterministic=prepared.is_deterministic,
                directives=directives,
            )
        state.metrics.cache_requests.labels(answer.result).inc()
        headers = {"X-Axion-Cache": answer.result.value}
        if answer.result is CacheResult.HIT:
            headers["Age"] = str(answer.age_s)
        return Response(answer.body, headers=headers, media_type="application/json")

    async def collect(self, chunks: AsyncIterator[ChatCompletionChunk]) -> ChatCompletion:
        return await collect_chat(chunks)

    def has_tokens(self, chunk: ChatCompletionChunk) -> bool:
        return any(choice.delta.content or choice.delta.tool_calls for choice in chunk.choices)
