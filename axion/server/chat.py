"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from starlette.responses import Response

from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletion, ChatCompletionChunk, Delta, collect_chat
from axion.server.endpoint import Call
from axion.server.generation import GenerationEndpoint
from axion.server.response_cache import CachedAnswer, CacheResult, cache_directives


class ChatCompletions(GenerationEndpoint[ChatCompletionRequest, ChatCompletionChunk]):
    request_type = ChatCompletionRequest

    def generate(
        self, call: Call[ChatCompletionRequest]
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return call.backend.chat(call.request, call.id)

    async def respond(self, call: Call[ChatCompletionRequest]) -> Response:
        """From the response cache if it has the answer."""
        state = call.state
        directives = cache_directives(call.headers.getlist("cache-control"))
        if not state.cache.is_on or "no-store" in directives:
            body = await self.whole(call, self.generate(call))
            answer = CachedAnswer(body, CacheResult.BYPASS)
        else:
            route = call.backend
            prepared = await route.prepare_chat(call.request)
            engine = route.engine

            async def compute() -> bytes:
                return await self.whole(call, prepared.run(call.id))

            answer = await state.cache.answer(
                prepared.cache_key,
                compute,
                is_deterministic=prepared.is_deterministic,
                directives=directives,
                keep=lambda: route.engine == engine,  # another one may have had to answer
            )
        state.metrics.cache_requests.labels(answer.result).inc()
        headers = {"X-Axion-Cache": answer.result.value}
        if answer.result is CacheResult.HIT:
            headers["Age"] = str(answer.age_s)
        return Response(answer.body, headers=headers, media_type="application/json")

    async def collect(
        self, request: ChatCompletionRequest, chunks: AsyncIterator[ChatCompletionChunk]
    ) -> ChatCompletion:
        return await collect_chat(chunks, with_logprobs=request.num_logprobs is not None)

    def has_tokens(self, chunk: ChatCompletionChunk) -> bool:
        return any(_has_tokens(choice.delta) for choice in chunk.choices)


def _has_tokens(delta: Delta) -> bool:
    return bool(delta.content or delta.reasoning_content or delta.tool_calls)
