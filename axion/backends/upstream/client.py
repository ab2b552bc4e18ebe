"""One OpenAI-compatible server over HTTP, of which one model is asked.

Every answer is streamed by the server and passed on chunk by chunk. What the servers differ in
ends in this package.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from axion.backends.base import Tokenization
from axion.backends.capabilities import Capabilities, shipped_capabilities
from axion.backends.events import EventReader, ServerEvent
from axion.backends.http import HttpClient, Verify
from axion.backends.upstream.answer import Answer, ChunkT, RequestT
from axion.backends.upstream.chat import ChatAnswer
from axion.backends.upstream.completions import TextAnswer
from axion.backends.upstream.dialect import Dialect
from axion.backends.upstream.faults import Faults
from axion.backends.upstream.messages import Detokenized, ModelList, Tokenized
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered

_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# A server's first request may compile.
_FIRST_ANSWER_S = 600.0
_SHORT_ANSWER_S = 60.0
StructT = TypeVar("StructT", bound=msgspec.Struct)


class Upstream:
    """One model, served by an OpenAI-compatible server.

    Args:
        base_url: the server's, as OpenAI's clients take it (`http://host:8000/v1`); `/v1` may be
            left out where nothing else stands there.
        engine: name of the engine, for its capabilities and for people.
        upstream_model: what the server calls the model.
        served_name: what clients call it.
        api_key: sent as a bearer token.
        verify: whether to check the server's certificate, or the file of authorities to check by.
        rename: fields of a request that the server has under another name.
        extra_body: fields that every request gets.
        counts: fields of a stream's request that have each chunk say how many tokens there are,
            where the server has not vLLM's option for that: by the `token_ids` of a choice, or by
            llama.cpp's `timings`.
        capabilities: what the server does with requests; without it what is shipped of the engine.

    Attributes:
        dialect: how the server wants to be asked.
        num_running: requests in it.
        last_data_at: when something of an answer last came, by `time.monotonic`.

    Raises:
        ValueError: the URL or the key cannot be one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        engine: str,
        upstream_model: str,
        served_name: str,
        api_key: str | None = None,
        verify: Verify = True,
        rename: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        counts: Mapping[str, Any] | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else None
        self._client = HttpClient(base_url, headers=headers, verify=verify)
        path = urlsplit(base_url).path.rstrip("/")
        self._api = path or "/v1"
        self._root = path.removesuffix("/v1")
        self.url = base_url
        self.upstream_model = upstream_model
        self.served_name = served_name
        self.dialect = Dialect(
            engine=engine,
            upstream_model=upstream_model,
            capabilities=capabilities or shipped_capabilities(engine),
            rename=rename,
            extra_body=extra_body,
            counts=counts,
        )
        self._faults = Faults(
            engine=engine, upstream_model=upstream_model, served_name=served_name, api_key=api_key
        )
        self.num_running = 0
        self.last_data_at = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def is_healthy(self, path: str = "/health", timeout_s: float = 5.0) -> bool:
        """Whether a GET of `path` is answered by 200 within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                return (await self._exchange("GET", self._root + path)).status == 200
        except OSError:
            return False

    async def answers(self, timeout_s: float = _FIRST_ANSWER_S) -> None:
        """Returns when the server has generated a token.

        Raises:
            AxionError: it has not.
        """
        body = {"model": self.upstream_model, "max_tokens": 1, **self.dialect.extra_body}
        chat = {**body, "messages": [{"role": "user", "content": "Hi"}]}
        answer = await self._ask("POST", f"{self._api}/chat/completions", chat, timeout_s)
        if 400 <= answer.status < 500:  # the model may have no chat template
            text = {**body, "prompt": "Hi"}
            second = await self._ask("POST", f"{self._api}/completions", text, timeout_s)
            answer = second if second.status == 200 else answer
        if answer.status != 200:
            raise self._faults.of_answer(answer.status, answer.body, answer.headers)

    async def models(self) -> list[str]:
        """What the server calls the models that it serves.

        Raises:
            AxionError: it does not say.
        """
        answer = await self._ask("GET", f"{self._api}/models", None, _SHORT_ANSWER_S)
        return [model.id for model in self._decoded(answer, ModelList).data]

    def chat(
        self, request: ChatCompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """As `InferenceBackend.chat`."""
        return self._run(
            ChatAnswer(self.dialect, self._faults, self.served_name, request, request_id, delivered)
        )

    def complete(
        self, request: CompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[CompletionChunk, None]:
        """As `InferenceBackend.complete`."""
        return self._run(
            TextAnswer(self.dialect, self._faults, self.served_name, request, request_id, delivered)
        )

    async def tokenize(
        self,
        prompt: str | ChatCompletionRequest,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        """As `InferenceBackend.tokenize`, by vLLM's `/tokenize`.

        Raises:
            NotFoundError: the server has no such endpoint.
        """
        body: dict[str, Any] = {"model": self.upstream_model, "return_token_strs": with_strings}
        if add_special_tokens is not None:
            body["add_special_tokens"] = add_special_tokens
        if isinstance(prompt, str):
            body["prompt"] = prompt
        else:
            names = {"messages", "tools", "add_generation_prompt", "continue_final_message"}
            names.add("chat_template_kwargs")
            body |= prompt.model_dump(include=names, exclude_none=True, by_alias=True)
        answer = await self._ask("POST", f"{self._root}/tokenize", body, _SHORT_ANSWER_S)
        found = self._decoded(answer, Tokenized)
        return Tokenization(
            token_ids=found.tokens,
            token_strings=found.token_strs or [],
            max_model_len=found.max_model_len,
        )

    async def detokenize(self, token_ids: list[int]) -> str:
        """As `InferenceBackend.detokenize`, by vLLM's `/detokenize`.

        Raises:
            NotFoundError: the server has no such endpoint.
        """
        body = {"model": self.upstream_model, "tokens": token_ids}
        answer = await self._ask("POST", f"{self._root}/detokenize", body, _SHORT_ANSWER_S)
        return self._decoded(answer, Detokenized).prompt

    async def drain(self, drain_s: float) -> None:
        """Take no more requests, let the running ones finish for `drain_s` seconds, then end them.

        Those that are ended raise `EngineUnavailableError`.
        """
        self._closed = True
        try:
            await asyncio.wait_for(self._idle.wait(), drain_s)
        except TimeoutError:
            await self._client.close()

    async def close(self) -> None:
        """End all requests and close all connections."""
        self._closed = True
        await self._client.close()

    async def _run(self, answer: Answer[RequestT, ChunkT]) -> AsyncGenerator[ChunkT, None]:
        body = answer.body()
        if body is not None:
            data = msgspec.json.encode(body)
            with self._running():
                reader = EventReader()
                async with self._client.request("POST", self._api + answer.path, data) as response:
                    if response.status != 200:
                        error = await response.read_all(_MAX_ANSWER_BYTES)
                        raise self._faults.of_answer(response.status, error, response.headers)
                    if not answer.is_stream:
                        whole = await response.read_all(_MAX_ANSWER_BYTES)
                        for chunk in answer.take(ServerEvent(whole)):
                            yield chunk
                        answer.is_done = True
                    while not answer.is_done and (data := await response.read()):
                        self.last_data_at = time.monotonic()
                        for event in reader.push(data):
                            for chunk in answer.take(event):
                                yield chunk
                    response.ends_soon = not answer.is_cut
        for chunk in answer.end():
            yield chunk

    @contextmanager
    def _running(self) -> Iterator[None]:
        if self._closed:
            raise self._faults.stopping()
        self.num_running += 1
        self._idle.clear()
        try:
            yield
        except OSError as error:
            raise self._faults.unreachable(error) from None
        except ValueError:  # of an event that never ends, or a field of another type
            raise self._faults.not_understood() from None
        finally:
            self.num_running -= 1
            if not self.num_running:
                self._idle.set()

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> _Reply:
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(method, path, data)
        except OSError as error:
            raise self._faults.unreachable(error) from None

    async def _exchange(self, method: str, path: str, data: bytes | None = None) -> _Reply:
        async with self._client.request(method, path, data) as response:
            body = await response.read_all(_MAX_ANSWER_BYTES)
            return _Reply(response.status, body, response.headers)

    def _decoded(self, reply: _Reply, kind: type[StructT]) -> StructT:
        if reply.status in (404, 405):
            raise self._faults.no_endpoint()
        if reply.status != 200:
            raise self._faults.of_answer(reply.status, reply.body, reply.headers)
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._faults.not_understood() from None


class _Reply(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]
