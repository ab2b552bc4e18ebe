"""What backends in front of an OpenAI-compatible server share, spawned or remote."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator

import msgspec

from axion.backends.base import PreparedChat, Tokenization
from axion.backends.capabilities import Capabilities
from axion.backends.inference import LibraryBackend
from axion.backends.upstream.client import Upstream
from axion.errors import EngineUnavailableError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered


class UpstreamBackend(LibraryBackend):
    """The part of `InferenceBackend` that is about requests.

    A subclass does `start`, `health` and `stop`. It sets `upstream` when its server answers, sets
    another one when another server has taken its place, and None when there is none.

    Attributes:
        engine: name of the server's engine.
        identity: what distinguishes the answers of this server's model from those of another that
            has the same name: the model's files, the engine's version, the server's address. It
            becomes part of the response cache's keys.
        detail: why there is no upstream, for the person who sent a request.
    """

    engine: str
    has_own_queue = False
    capabilities: Capabilities
    identity: tuple[str, ...] = ()
    upstream: Upstream | None = None
    detail: str = "The model is loading."

    async def prepare_chat(self, request: ChatCompletionRequest) -> PreparedChat:
        upstream = self._ready()
        body = upstream.dialect.body(request)
        body.pop("priority", None)
        stop = (request.stop, request.include_stop_str_in_output)
        cuts = stop if upstream.dialect.cuts(request) else None
        parts = (self.engine, self.identity, upstream.served_name, body, cuts)
        key = hashlib.blake2b(msgspec.json.encode(parts)).digest()
        return PreparedChat(
            key, self._is_deterministic(request), lambda id: self._ready().chat(request, id)
        )

    def chat(
        self, request: ChatCompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        return self._ready().chat(request, request_id, delivered=delivered)

    def complete(
        self, request: CompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[CompletionChunk, None]:
        return self._ready().complete(request, request_id, delivered=delivered)

    async def tokenize(
        self,
        prompt: str | ChatCompletionRequest,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        return await self._ready().tokenize(
            prompt, add_special_tokens=add_special_tokens, with_strings=with_strings
        )

    async def detokenize(self, token_ids: list[int]) -> str:
        return await self._ready().detokenize(token_ids)

    def _ready(self) -> Upstream:
        if self.upstream is None:
            raise EngineUnavailableError(self.detail, headers={"Retry-After": "5"})
        return self.upstream

    def _is_deterministic(self, request: ChatCompletionRequest) -> bool:
        if request.temperature == 0 and not self.capabilities.missing(["temperature"]):
            return True
        seed = "seed" if request.seed else "seed.0"
        return request.seed is not None and not self.capabilities.missing([seed])
