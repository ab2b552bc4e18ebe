"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from axion.openai.completions import (
    Completion,
    CompletionChunk,
    CompletionRequest,
    collect_completion,
)
from axion.server.endpoint import Call
from axion.server.generation import GenerationEndpoint


class Completions(GenerationEndpoint[CompletionRequest, CompletionChunk]):
    request_type = CompletionRequest

    def generate(self, call: Call[CompletionRequest]) -> AsyncGenerator[CompletionChunk, None]:
        return call.backend.complete(call.request, call.id)

    async def collect(
        self, request: CompletionRequest, chunks: AsyncIterator[CompletionChunk]
    ) -> Completion:
        return await collect_completion(chunks, with_logprobs=request.num_logprobs is not None)

    def has_tokens(self, chunk: CompletionChunk) -> bool:
        return any(choice.text for choice in chunk.choices)
