"""One OpenAI-compatible server over HTTP: requests as it takes them, answers as Axion gives them.

Every answer is streamed by the server and passed on chunk by chunk. What the
servers differ in (fields of their own, where the role is, the name of reasoning) ends here.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from axion.backends.base import Tokenization
from axion.backends.capabilities import USAGE_IN_CHUNKS, Capabilities, shipped_capabilities
from axion.backends.events import EventReader, ServerEvent
from axion.backends.http import HttpClient, Verify
from axion.backends.stop_cut import StopCut
from axion.errors import (
    AxionError,
    CannotContinueError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    RequestTooLargeError,
)
from axion.openai.chat import ChatCompletionChunk, ChatCompletionRequest
from axion.openai.common import (
    GenerationRequest,
    UsageSoFar,
    stop_reason_field,
)
from axion.openai.completions import DEFAULT_MAX_TOKENS, CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered, DeliveredChoice
from axion.openai.features import is_neutral
from axion.openai.structured import StructuredRequest

logger = logging.getLogger("axion.backends")

_DONE = b"[DONE]"
_NOTHING = b"null"  # with which llama.cpp begins the stream of several prompts
# Fields that are sent in another way; and those that ask for nothing, which some servers refuse.
_NOT_SENT = frozenset(
    """
    model stream stream_options
    user metadata safety_identifier prompt_cache_key prompt_cache_retention service_tier store
    modalities best_of structured_outputs guided_json guided_regex guided_choice guided_grammar
    """.split()  # noqa: SIM905
)
# Some servers take 0 for none; any other number is as good.
_SEED_FOR_0 = 1_592_653_589
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_MAX_MESSAGE_CHARS = 500
# A server's first request may compile.
_FIRST_ANSWER_S = 600.0
_SHORT_ANSWER_S = 60.0
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w<])(?:~|\.{1,2})?/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_CONTEXT_LENGTH = re.compile(
    r"context[ _](?:length|size|window)|maximum (?:model|input|sequence) length", re.IGNORECASE
)

TokensT = TypeVar("TokensT")
RequestT = TypeVar("RequestT", ChatCompletionRequest, CompletionRequest)
ChunkT = TypeVar("ChunkT", ChatCompletionChunk, CompletionChunk)


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
        num_running: requests in it.
        last_data_at: when something of an answer last came, by `time.monotonic`.
        tells_usage: whether each of the server's chunks can have the usage so far, by which another
            engine can go on with the answer exactly.

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
        self.engine = engine
        self.upstream_model = upstream_model
        self.served_name = served_name
        self.capabilities = capabilities or shipped_capabilities(engine)
        self._api_key = api_key
        self._rename = dict(rename or {})
        self._extra_body = dict(extra_body or {})
        self._counts = dict(counts or {})
        self._has_usage_option = not self.capabilities.missing([USAGE_IN_CHUNKS])
        self.tells_usage = self._has_usage_option or bool(counts)
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
        body = {"model": self.upstream_model, "max_tokens": 1, **self._extra_body}
        chat = {**body, "messages": [{"role": "user", "content": "Hi"}]}
        answer = await self._ask("POST", f"{self._api}/chat/completions", chat, timeout_s)
        if 400 <= answer.status < 500:  # the model may have no chat template
            text = {**body, "prompt": "Hi"}
            second = await self._ask("POST", f"{self._api}/completions", text, timeout_s)
            answer = second if second.status == 200 else answer
        if answer.status != 200:
            raise self.failure(answer.status, answer.body, answer.headers)

    async def models(self) -> list[str]:
        """What the server calls the models that it serves.

        Raises:
            AxionError: it does not say.
        """
        answer = await self._ask("GET", f"{self._api}/models", None, _SHORT_ANSWER_S)
        return [model.id for model in self._decoded(answer, _ModelList).data]

    def chat(
        self, request: ChatCompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """As `InferenceBackend.chat`."""
        return self._run(_ChatAnswer(self, request, request_id, delivered))

    def complete(
        self, request: CompletionRequest, request_id: str, *, delivered: Delivered | None = None
    ) -> AsyncGenerator[CompletionChunk, None]:
        """As `InferenceBackend.complete`."""
        return self._run(_TextAnswer(self, request, request_id, delivered))

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
        found = self._decoded(answer, _Tokenized)
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
        return self._decoded(answer, _Detokenized).prompt

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

    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """A request as the server takes it.

        Raises:
            InvalidRequestError: the server has no field for something in it.
        """
        given = request.model_dump(
            exclude_unset=True, exclude_none=True, by_alias=True, exclude=set(_NOT_SENT)
        )
        if self.cuts(request):
            given.pop("stop", None)
            given.pop("include_stop_str_in_output", None)
        if request.seed == 0 and self.capabilities.missing(["seed.0"]):
            given["seed"] = _SEED_FOR_0
        missing = self.capabilities.missing([*given])
        body = {
            self.name_of(name): value
            for name, value in given.items()
            if not (name in missing and is_neutral(name, value))
        }
        if isinstance(request, StructuredRequest):
            body |= self._constraint(request)
        options: dict[str, Any] = {"include_usage": True}
        if self._has_usage_option:
            options["continuous_usage_stats"] = True
        own = {"model": self.upstream_model, "stream": True, "stream_options": options}
        return own | self._counts | body | self._extra_body

    def cuts(self, request: GenerationRequest) -> bool:
        """Whether stop strings of this request are found here, since the server would not."""
        wanted = ["stop"]
        if request.include_stop_str_in_output:
            wanted.append("include_stop_str_in_output")
        return bool(request.stop and self.capabilities.missing(wanted))

    def name_of(self, field: str) -> str:
        """The server's name of a request's field."""
        return self._rename.get(field, field)

    def _constraint(self, request: StructuredRequest) -> dict[str, Any]:
        constraint = request.constraint
        if constraint is None or constraint.param == "response_format":
            return {}
        if request.structured_outputs is not None:
            given = request.structured_outputs.model_dump(by_alias=True, include=set(_CONSTRAINTS))
            given |= {"json": request.structured_outputs.json_}
        else:
            given = {name: getattr(request, f"guided_{name}", None) for name in _CONSTRAINTS}
        [(name, value)] = [item for item in given.items() if item[1] is not None]
        if not self.capabilities.missing([f"structured_outputs.{name}"]):
            return {"structured_outputs": {name: value}}
        if name == "json":
            schema = msgspec.json.decode(value) if isinstance(value, str) else value
            described = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": described}}
        if name == "json_object":
            return {"response_format": {"type": "json_object"}}
        raise InvalidRequestError(
            f"{constraint.param} is not supported by the engine of this model ({self.engine}).",
            param=constraint.param,
        )

    async def _run(self, answer: _Answer[RequestT, ChunkT]) -> AsyncGenerator[ChunkT, None]:
        body = answer.body()
        if body is not None:
            data = msgspec.json.encode(body)
            with self._running():
                reader = EventReader()
                async with self._client.request("POST", self._api + answer.path, data) as response:
                    if response.status != 200:
                        error = await response.read_all(_MAX_ANSWER_BYTES)
                        raise self.failure(response.status, error, response.headers)
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
            raise EngineUnavailableError(f"The engine of this model ({self.engine}) is stopping.")
        self.num_running += 1
        self._idle.clear()
        try:
            yield
        except OSError as error:
            raise self._unreachable(error) from None
        except ValueError:  # of an event that never ends, or a field of another type
            raise self.not_understood() from None
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
            raise self._unreachable(error) from None

    async def _exchange(self, method: str, path: str, data: bytes | None = None) -> _Reply:
        async with self._client.request(method, path, data) as response:
            body = await response.read_all(_MAX_ANSWER_BYTES)
            return _Reply(response.status, body, response.headers)

    def _decoded(self, reply: _Reply, kind: type[_StructT]) -> _StructT:
        if reply.status in (404, 405):
            raise NotFoundError(
                f"The engine of this model ({self.engine}) has no such endpoint; it cannot do this."
            )
        if reply.status != 200:
            raise self.failure(reply.status, reply.body, reply.headers)
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self.not_understood() from None

    def _unreachable(self, error: Exception) -> EngineUnavailableError:
        logger.warning("engine %s: %s", self.engine, self._shown(str(error) or repr(error)))
        return EngineUnavailableError(
            f"The connection to the engine of this model ({self.engine}) broke or could not be "
            "made. Send the request again.",
            headers={"Retry-After": "5"},
        )

    def not_understood(self) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"What the engine of this model ({self.engine}) answered cannot be understood."
        )

    def failure(self, status: int, body: bytes, headers: Mapping[str, str]) -> AxionError:
        """What a client gets for an answer of the server that is not 200."""
        told = _told(body)
        message = self._shown(told.message)
        logger.warning("engine %s answered %d: %s", self.engine, status, message)
        engine = f"the engine of this model ({self.engine})"
        if status == 429:
            retry = {"Retry-After": headers.get("retry-after", "1")}
            return QueueFullError(f"{engine[0].upper()}{engine[1:]} is busy.", headers=retry)
        # A wrong key, name or path is Axion's to have right, not the client's.
        if not 400 <= status < 500 or status in (401, 403, 404, 405, 408):
            retry = {"Retry-After": headers.get("retry-after", "5")}
            return EngineUnavailableError(
                f"This request could not be answered: {engine} failed (status {status}).",
                headers=retry,
            )
        text = f"{message or 'The request was refused.'} (engine: {self.engine})"
        if status == 413:
            return RequestTooLargeError(text)
        if _CONTEXT_LENGTH.search(f"{told.code} {told.type} {told.message}"):
            return ContextLengthExceededError(text, param=told.param)
        return InvalidRequestError(text, param=told.param)

    def error_in_stream(self, event: ServerEvent) -> AxionError:
        told = _told(event.data)
        return self.failure(told.status or 500, event.data, {})

    def _shown(self, message: str) -> str:
        """A server's words without its addresses, paths, traceback and key."""
        if self._api_key:
            message = message.replace(self._api_key, "…")
        for noise in ("Traceback (most recent call last)", "For further information visit"):
            message = message.partition(noise)[0]
        message = message.replace(self.upstream_model, self.served_name)
        kept = message.split(self.served_name) if "/" in self.served_name else [message]
        clean = [_PATH.sub("…", _URL.sub("…", part)) for part in kept]
        text = " ".join(self.served_name.join(clean).split())
        return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}…"


class _Reply(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]


# What servers send. Fields that are not named here are skipped without being decoded.


_StructT = TypeVar("_StructT", bound=msgspec.Struct)


class _ModelCard(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


class _Tokenized(msgspec.Struct):
    tokens: list[int]
    max_model_len: int
    token_strs: list[str] | None = None


class _Detokenized(msgspec.Struct):
    prompt: str


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    @property
    def num_cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0

    @property
    def num_reasoning(self) -> int | None:
        details = self.completion_tokens_details
        return details.reasoning_tokens if details is not None else None


class _Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _TokenLogprob(_Logprob):
    top_logprobs: list[_Logprob] | None = None


class _Logprobs(msgspec.Struct):
    """A chat's `content`, or the lists of text completions."""

    content: list[_TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _ChatChoice(_Choice):
    delta: _Delta | None = None


class _TextChoice(_Choice):
    text: str | None = None


class _Timings(msgspec.Struct):
    """Of llama.cpp: the tokens of one choice so far."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


_NO_ERROR = msgspec.Raw(b"null")


class _Event(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = _NO_ERROR
    choices: list[Any] | None = None


class _ChatEvent(_Event):
    choices: list[_ChatChoice] | None = None


class _TextEvent(_Event):
    choices: list[_TextChoice] | None = None


class _Told(NamedTuple):
    """What an error body says; servers have several forms of it."""

    message: str = ""
    param: str | None = None
    code: str = ""
    type: str = ""
    status: int | None = None


def _told(body: bytes) -> _Told:
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Told(body[:_MAX_MESSAGE_CHARS].decode(errors="replace"))
    if isinstance(data, dict):
        for name in ("error", "detail"):
            data = data.get(name) or data
            if not isinstance(data, dict):
                break
    if isinstance(data, list):  # FastAPI's list of what is wrong with the fields
        data = data[0] if data else ""
    if not isinstance(data, dict):
        return _Told(str(data))
    place = data.get("loc")
    param = data.get("param") or (place[-1] if isinstance(place, list) and place else None)
    code = data.get("code")
    status = int(str(code)) if str(code).isdecimal() else None
    kind = str(data.get("type") or "")
    if status is None and "invalid_request" in kind:
        status = 400
    return _Told(
        str(data.get("message") or data.get("msg") or ""),
        param if isinstance(param, str) and param and not _PATH.search(param) else None,
        str(code or ""),
        kind,
        status,
    )


@dataclass(slots=True)
class _Counted:
    """The tokens of one choice and of its prompt."""

    num_prompt: int = 0
    num_cached: int = 0
    num_generated: int = 0


class _Answer(Generic[RequestT, ChunkT]):
    """One answer on its way from the server to a client.

    Attributes:
        is_done: nothing follows, as the server has said, or since the answer is cut.
        is_cut: stop strings ended it, which the server does not know.
    """

    path: ClassVar[str]

    def __init__(
        self,
        upstream: Upstream,
        request: RequestT,
        request_id: str,
        delivered: Delivered | None,
        *,
        kind: str,
        prefix: str,
        num_choices: int,
    ) -> None:
        self._upstream = upstream
        self._request: RequestT = request
        self._delivered = delivered
        self._num_choices = num_choices
        self._shared: dict[str, Any] = {
            "id": f"{prefix}-{request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": upstream.served_name,
            "system_fingerprint": None,
        }
        if request.include_usage and request.stream:
            self._shared["usage"] = None
        self._with_usage = request.usage_in_every_chunk
        self._tells_usage = upstream.tells_usage and num_choices == 1
        self._usage: _Usage | None = None
        self._counted: dict[int, _Counted] = {}  # where the server counts each choice's tokens
        stop = request.stop if upstream.cuts(request) else None
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self._cuts: dict[int, StopCut[Any]] = {}
        self._num_chunks = 0  # with tokens in them
        self._began: set[int] = set()
        self._finished: set[int] = set()
        self._num_delivered = 0
        self._wants_usage_only = False
        self._exhausted = False  # all tokens are delivered, and nobody has said so
        self.is_done = False
        self.is_cut = False

    def body(self) -> dict[str, Any] | None:
        """What to ask the server for; None where nothing is left to ask for.

        Raises:
            CannotContinueError: this server cannot go on with what is delivered.
        """
        body = self._upstream.body(self._request)
        delivered = self._delivered
        if delivered is None or not delivered.started:
            return body
        if self._num_choices > 1:
            raise self._cannot("an answer with several choices")
        choice = delivered.choices[0]
        self._began.add(0)
        self._num_delivered = choice.num_chunks
        if delivered.usage is not None:
            self._num_delivered = delivered.usage.completion_tokens
        if choice.finished:
            self._finished.add(0)
            return self._ask_for_usage(body)
        if not (choice.content or choice.reasoning or choice.calls):
            return body
        if choice.reasoning or choice.calls:
            raise self._cannot("reasoning or a tool call")
        if self._request.constraint is not None:
            raise self._cannot("an answer that follows a grammar")
        # They count what was generated, and what is delivered would now be prompt. A seed is let
        # pass: the rest is drawn anew, but from the same distribution.
        if self._request.presence_penalty or self._request.frequency_penalty:
            raise self._cannot("an answer with penalties on what it has said")
        self._go_on(body, choice)
        for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
            name = self._upstream.name_of(name)
            if name in body:
                body[name] = max(0, body[name] - self._num_delivered)
                if not body[name] and not name.startswith("min"):
                    self._exhausted = True
                    self._finished.add(0)
                    return self._ask_for_usage(self._upstream.body(self._request))
        return body

    def _ask_for_usage(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """What tells how long the prompt is, where that is wanted and not known."""
        if self._delivered is None or self._delivered.usage or not self._request.include_usage:
            return None
        self._wants_usage_only = True
        for name in ("max_completion_tokens", "min_tokens"):
            body.pop(self._upstream.name_of(name), None)
        return body | {self._upstream.name_of("max_tokens"): 1}

    def _go_on(self, body: dict[str, Any], choice: DeliveredChoice) -> None:
        """Make `body` ask for what follows the delivered text."""
        raise NotImplementedError

    def _cannot(self, what: str) -> CannotContinueError:
        return CannotContinueError(
            f"The answer broke off, and {what} cannot be gone on with by another engine."
        )

    def take(self, event: ServerEvent) -> list[ChunkT]:
        """The chunks for an event of the server.

        Raises:
            AxionError: it is an error, or cannot be understood.
        """
        if self.is_cut or event.data == _NOTHING:
            return []
        if event.data == _DONE:
            self.is_done = True
            return []
        try:
            message = self._decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._upstream.not_understood() from None
        is_error = message.error is not _NO_ERROR and message.error != _NO_ERROR
        if is_error or event.name == b"error":
            raise self._upstream.error_in_stream(event)
        if message.usage is not None:
            self._usage = message.usage
        chunks: list[ChunkT] = []
        for choice in message.choices or ():
            if not 0 <= choice.index < self._num_choices:
                raise self._upstream.not_understood()
            if choice.index in self._finished:
                continue
            self._count(choice, message.timings)
            # What cuts the choice also sets its finish_reason.
            chunks += [self._chunk(choice.index, fields) for fields in self._parts(choice)]
            if choice.finish_reason:
                chunks.append(self._last(choice))
        if self.is_cut:
            self.is_cut = self.is_done = len(self._finished) == self._num_choices
        return chunks

    def _count(self, choice: _Choice, timings: _Timings | None) -> None:
        if timings is None and choice.token_ids is None:
            return
        counted = self._counted.setdefault(choice.index, _Counted())
        if timings is not None:
            counted.num_prompt = timings.cache_n + timings.prompt_n
            counted.num_cached = timings.cache_n
            counted.num_generated = timings.predicted_n
            return
        counted.num_prompt += len(choice.prompt_token_ids or ())
        counted.num_generated += len(choice.token_ids or ())

    def _shown(
        self, choice: _Choice, text: str, tokens: TokensT | None
    ) -> tuple[str, list[TokensT]]:
        """What of a chunk's text can be shown now, and what is told of the tokens in it."""
        if not self._stop:
            return text, [] if tokens is None else [tokens]
        cut = self._cuts.get(choice.index)
        if cut is None:
            include = bool(self._request.include_stop_str_in_output)
            cut = self._cuts[choice.index] = StopCut(self._stop, include)
        counted = self._counted.get(choice.index)
        num_generated = self._num_delivered + (counted.num_generated if counted else 0)
        may_stop = num_generated >= (self._request.min_tokens or 0)
        shown, told, stop = cut.push(text, tokens, may_stop=may_stop)
        if stop is not None:
            choice.finish_reason, choice.stop_reason = "stop", stop
            self.is_cut = True
        elif choice.finish_reason:
            rest, more = cut.flush()
            shown, told = shown + rest, told + more
        return shown, told

    def end(self) -> Iterator[ChunkT]:
        """What follows the server's last event.

        Raises:
            EngineUnavailableError: the answer is not whole.
        """
        if self._exhausted:
            yield self._last(_Choice(finish_reason="length"))
        if len(self._finished) < self._num_choices:
            raise EngineUnavailableError(
                f"The engine of this model ({self._upstream.engine}) stopped before the answer was "
                "complete."
            )
        if self._request.include_usage:
            yield self._validate({**self._shared, "choices": [], "usage": self._whole_usage()})

    def _decode(self, data: bytes) -> _Event:
        raise NotImplementedError

    def _validate(self, fields: dict[str, Any]) -> ChunkT:
        raise NotImplementedError

    def _parts(self, choice: Any) -> Iterator[dict[str, Any]]:
        """What a server's choice adds, as choices of chunks without `index`."""
        raise NotImplementedError

    def _finish(self, index: int, reason: str) -> dict[str, Any]:
        """The choice of the chunk that ends one, without `index`."""
        raise NotImplementedError

    def _chunk(self, index: int, fields: dict[str, Any]) -> ChunkT:
        chunk = {**self._shared, "choices": [{"index": index, "finish_reason": None, **fields}]}
        if self._with_usage:
            chunk["usage"] = self._whole_usage()
        elif self._tells_usage and (self._usage is not None or self._counted):
            chunk["usage_so_far"] = self._counts()
        return self._validate(chunk)

    def _last(self, choice: _Choice) -> ChunkT:
        reason = choice.finish_reason
        assert reason is not None
        if reason in ("abort", "error"):
            raise EngineUnavailableError(
                f"The engine of this model ({self._upstream.engine}) gave this request up."
            )
        self._finished.add(choice.index)
        fields = self._finish(choice.index, reason)
        return self._chunk(choice.index, fields | stop_reason_field(choice.stop_reason))

    def _counts(self) -> UsageSoFar:
        """Of the whole answer: what was delivered before is part of it, and not of the prompt."""
        told = self._told_usage()
        if self._wants_usage_only:
            told = _Usage(told.prompt_tokens + self._num_delivered, 0, told.prompt_tokens_details)
        num_here = told.completion_tokens
        if num_here is None:
            num_here = self._num_chunks
        num_prompt = max(0, told.prompt_tokens - self._num_delivered)
        num_cached = min(told.num_cached, num_prompt)
        if self._delivered is not None and self._delivered.usage is not None:
            before = self._delivered.usage
            num_prompt = before.prompt_tokens
            num_cached = before.cached_tokens
        return UsageSoFar(num_prompt, num_cached, self._num_delivered + num_here)

    def _told_usage(self) -> _Usage:
        """What the server says; of llama.cpp, the usage of several choices is that of one."""
        usage = self._usage or _Usage()
        if not self._counted:
            return usage
        per_prompt = self._request.num_choices
        prompts = {index // per_prompt: counted for index, counted in self._counted.items()}
        num_cached = sum(counted.num_cached for counted in prompts.values())
        return _Usage(
            sum(counted.num_prompt for counted in prompts.values()),
            sum(counted.num_generated for counted in self._counted.values()),
            _PromptDetails(max(num_cached, usage.num_cached)),
            usage.completion_tokens_details,
        )

    def _whole_usage(self) -> dict[str, Any]:
        counts = self._counts()
        return {
            "prompt_tokens": counts.prompt_tokens,
            "completion_tokens": counts.completion_tokens,
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
        }


class _ChatAnswer(_Answer[ChatCompletionRequest, ChatCompletionChunk]):
    path = "/chat/completions"

    def __init__(
        self,
        upstream: Upstream,
        request: ChatCompletionRequest,
        request_id: str,
        delivered: Delivered | None,
    ) -> None:
        super().__init__(
            upstream,
            request,
            request_id,
            delivered,
            kind="chat.completion.chunk",
            prefix="chatcmpl",
            num_choices=request.num_choices,
        )
        self._calls: dict[int, set[int]] = {}
        self._num_reasoning_chunks = 0

    def _go_on(self, body: dict[str, Any], choice: DeliveredChoice) -> None:
        if self._upstream.capabilities.missing(["continue_final_message"]):
            raise self._cannot("an answer of a chat")
        if self._request.requires_call:
            raise self._cannot("an answer that follows a grammar")
        if self._request.continue_final_message:
            last = body["messages"][-1]
            last["content"] = self._request.final_text + choice.content
        else:
            body["messages"].append({"role": "assistant", "content": choice.content})
        body |= {"continue_final_message": True, "add_generation_prompt": False}

    def _decode(self, data: bytes) -> _Event:
        return _decode_chat(data)

    def _validate(self, fields: dict[str, Any]) -> ChatCompletionChunk:
        return ChatCompletionChunk.model_validate(fields)

    def _parts(self, choice: _ChatChoice) -> Iterator[dict[str, Any]]:
        if choice.index not in self._began:
            self._began.add(choice.index)
            yield {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        delta: dict[str, Any] = {}
        given = choice.delta
        content = given.content if given is not None else None
        entries = choice.logprobs.content if choice.logprobs is not None else None
        text, told = self._shown(choice, content or "", entries)
        if text:
            delta["content"] = text
        if given is not None:
            if reasoning := given.reasoning_content or given.reasoning:
                delta["reasoning_content"] = reasoning
                self._num_reasoning_chunks += 1
            if given.tool_calls:
                calls = self._calls.setdefault(choice.index, set())
                delta["tool_calls"] = [_call(call, calls) for call in given.tool_calls]
        logprobs = [entry for entries in told for entry in entries]
        if delta or logprobs:
            self._num_chunks += 1
            yield {"delta": delta, "logprobs": _chat_logprobs(logprobs) if logprobs else None}

    def _finish(self, index: int, reason: str) -> dict[str, Any]:
        if reason != "length":
            reason = "tool_calls" if self._calls.get(index) else "stop"
        return {"delta": {}, "logprobs": None, "finish_reason": reason}

    def _whole_usage(self) -> dict[str, Any]:
        num_reasoning = self._usage and self._usage.num_reasoning
        if num_reasoning is None:
            num_reasoning = self._num_reasoning_chunks
        details = {"reasoning_tokens": num_reasoning}
        return super()._whole_usage() | {"completion_tokens_details": details}


class _TextAnswer(_Answer[CompletionRequest, CompletionChunk]):
    path = "/completions"

    def __init__(
        self,
        upstream: Upstream,
        request: CompletionRequest,
        request_id: str,
        delivered: Delivered | None,
    ) -> None:
        super().__init__(
            upstream,
            request,
            request_id,
            delivered,
            kind="text_completion",
            prefix="cmpl",
            num_choices=request.num_choices * len(request.prompts),
        )
        self._num_chars: dict[int, int] = {}

    def body(self) -> dict[str, Any] | None:
        body = super().body()
        if body is not None:
            # Servers differ in how much they generate where a request does not say.
            body.setdefault(self._upstream.name_of("max_tokens"), DEFAULT_MAX_TOKENS)
        return body

    def _go_on(self, body: dict[str, Any], choice: DeliveredChoice) -> None:
        prompt = self._request.prompts[0]
        if not isinstance(prompt, str):
            raise self._cannot("a prompt of token ids")
        if self._request.echo and self._request.logprobs is not None:
            raise self._cannot("the log probabilities of a prompt")
        body["prompt"] = choice.content if self._request.echo else prompt + choice.content
        body.pop("echo", None)
        body.setdefault(self._upstream.name_of("max_tokens"), DEFAULT_MAX_TOKENS)
        self._num_chars[0] = len(choice.content)

    def _decode(self, data: bytes) -> _Event:
        return _decode_text(data)

    def _validate(self, fields: dict[str, Any]) -> CompletionChunk:
        return CompletionChunk.model_validate(fields)

    def _parts(self, choice: _TextChoice) -> Iterator[dict[str, Any]]:
        text = choice.text or ""
        given = choice.logprobs
        logprobs = None
        offset = self._num_chars.get(choice.index, 0)
        self._num_chars[choice.index] = offset + len(text)
        # MAX sends empty lists to whoever has not asked for any.
        if given is not None and (given.tokens or given.content):
            logprobs = _text_logprobs(given, offset)
        shown, told = self._shown(choice, text, logprobs)
        if shown or told:
            self._num_chunks += 1
            yield {"text": shown, "logprobs": _joined(told) if told else None}

    def _finish(self, index: int, reason: str) -> dict[str, Any]:
        return {
            "text": "",
            "logprobs": None,
            "finish_reason": reason if reason == "length" else "stop",
        }


def _joined(lists: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    return {name: [entry for one in lists for entry in one[name]] for name in lists[0]}


_decode_chat = msgspec.json.Decoder(_ChatEvent).decode
_decode_text = msgspec.json.Decoder(_TextEvent).decode


def _call(call: _Call, begun: set[int]) -> dict[str, Any]:
    """A part of a call, of which the first one alone has the id and the name."""
    index = call.index if call.index is not None else 0
    arguments = (call.function and call.function.arguments) or ""
    if index in begun:
        return {"index": index, "function": {"arguments": arguments}}
    begun.add(index)
    return {
        "index": index,
        "id": call.id or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": (call.function and call.function.name) or "", "arguments": arguments},
    }


def _chat_logprobs(content: list[_TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": entry.token,
                "logprob": entry.logprob,
                "bytes": entry.bytes,
                "top_logprobs": [msgspec.structs.asdict(top) for top in entry.top_logprobs or ()],
            }
            for entry in content
        ],
        "refusal": None,
    }


def _text_logprobs(given: _Logprobs, offset: int) -> dict[str, Any]:
    """The lists of text completions; some servers send a chat's form.

    Args:
        offset: where the chunk's text begins in the choice's text.
    """
    if given.content is not None:
        tokens = [entry.token for entry in given.content]
        chosen: list[float | None] = [entry.logprob for entry in given.content]
        top: list[dict[str, float] | None] = [
            {other.token: other.logprob for other in entry.top_logprobs or ()}
            for entry in given.content
        ]
    else:
        tokens = given.tokens or []
        chosen = given.token_logprobs or [None] * len(tokens)
        top = given.top_logprobs or [None] * len(tokens)
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}
