"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from axion.backends.base import InferenceBackend
from axion.openai.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    collect_chat,
)
from axion.server.generation import GenerationEndpoint


class ChatCompletions(GenerationEndpoint[ChatCompletionRequest, ChatCompletionChunk]):
    request_type = ChatCompletionRequest

    def generate(
        self, backend: InferenceBackend, request: ChatCompletionRequest, request_id: str
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return backend.chat(request, request_id)

    async def collect(self, chunks: AsyncIterator[ChatCompletionChunk]) -> ChatCompletion:
        return await collect_chat(chunks)

    def has_tokens(self, chunk: ChatCompletionChunk) -> bool:
        return any(
            choice.delta.content or choice.delta.reasoning_content or choice.delta.tool_calls
            for choice in chunk.choices
        )
