"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from axion.backends.base import InferenceBackend
from axion.openai.completions import (
    Completion,
    CompletionChunk,
    CompletionRequest,
    collect_completion,
)
from axion.server.generation import GenerationEndpoint


class Completions(GenerationEndpoint[CompletionRequest, CompletionChunk]):
    request_type = CompletionRequest

    def generate(
        self, backend: InferenceBackend, request: CompletionRequest, request_id: str
    ) -> AsyncGenerator[CompletionChunk, None]:
        return backend.complete(request, request_id)

    async def collect(self, chunks: AsyncIterator[CompletionChunk]) -> Completion:
        return await collect_completion(chunks)

    def has_tokens(self, chunk: CompletionChunk) -> bool:
        return any(choice.text for choice in chunk.choices)
