"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from axion.openai.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Delta,
    collect_chat,
)
from axion.server.endpoint import Call
from axion.server.generation import GenerationEndpoint


class ChatCompletions(GenerationEndpoint[ChatCompletionRequest, ChatCompletionChunk]):
    request_type = ChatCompletionRequest

    def generate(
        self, call: Call[ChatCompletionRequest]
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return call.backend.chat(call.request, call.id)

    async def collect(self, chunks: AsyncIterator[ChatCompletionChunk]) -> ChatCompletion:
        return await collect_chat(chunks)

    def has_tokens(self, chunk: ChatCompletionChunk) -> bool:
        return any(_has_tokens(choice.delta) for choice in chunk.choices)


def _has_tokens(delta: Delta) -> bool:
    return bool(delta.content or delta.reasoning_content or delta.tool_calls)
