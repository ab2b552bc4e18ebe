"""Backends as a library: load a model, ask it, shut it down, without a server of Axion's own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import msgspec

from axion.backends.base import InferenceBackend, ModelConfig
from axion.errors import EngineUnavailableError, InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.common import GenerationRequest
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.features import features
from axion.openai.parsing import validate_request


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A text to continue, or a conversation to answer.

    Attributes:
        prompt, messages: one of the two; messages as OpenAI's chat completions have them.
        options: further fields of OpenAI's API (`logit_bias`, `tools`, ...).
    """

    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: Sequence[str] | None = None
    seed: int | None = None
    options: Mapping[str, Any] = {}


class InferenceResult(msgspec.Struct, frozen=True, kw_only=True):
    """An answer.

    Attributes:
        finish_reason: as OpenAI has it: `stop`, `length` or `tool_calls`.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class LibraryBackend:
    """What every backend offers to a program that uses it without a server.

    >>> async with NativeBackend() as backend:
    ...     await backend.load_model(ModelConfig(model_name="axion/demo"))
    ...     result = await backend.infer(InferenceRequest(prompt="Once upon", max_tokens=8))
    """

    async def load_model(self: InferenceBackend, model: ModelConfig) -> None:
        """Returns when the model answers.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelLoadError: the engine cannot serve it; says why.
        """
        await self.start(model)

    async def infer(self: InferenceBackend, request: InferenceRequest) -> InferenceResult:
        """One whole answer.

        Raises:
            InvalidRequestError: the request is at fault, or the engine does not honour it.
            EngineUnavailableError: the engine is.
        """
        text, reason, usage = [], None, None
        async with aclosing(_chunks(self, request)) as chunks:
            async for chunk in chunks:
                text.append(_text(chunk))
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
        if reason is None:
            raise EngineUnavailableError("The answer ended early.")
        return InferenceResult(
            text="".join(text),
            finish_reason=reason,
            prompt_tokens=usage.prompt_tokens if usage is not None else 0,
            completion_tokens=usage.completion_tokens if usage is not None else 0,
        )

    async def stream(
        self: InferenceBackend, request: InferenceRequest
    ) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece; raises as `infer` does."""
        async with aclosing(_chunks(self, request)) as chunks:
            async for chunk in chunks:
                if piece := _text(chunk):
                    yield piece

    async def shutdown(self: InferenceBackend) -> None:
        """End the engine, and what still runs in it."""
        await self.stop(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self: InferenceBackend,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(0)


def _chunks(
    backend: InferenceBackend, request: InferenceRequest
) -> AsyncGenerator[ChatCompletionChunk, None] | AsyncGenerator[CompletionChunk, None]:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("A request has either prompt or messages.", param="prompt")
    given = msgspec.to_builtins(request)
    fields = {name: value for name, value in given.items() if value is not None}
    fields |= {"model": "-"} | fields.pop("options")
    request_id = uuid.uuid4().hex
    if request.messages is None:
        text = validate_request(CompletionRequest, fields)
        _check(backend, text)
        return backend.complete(text, request_id)
    chat = validate_request(ChatCompletionRequest, fields)
    _check(backend, chat)
    return backend.chat(chat, request_id)


def _check(backend: InferenceBackend, request: GenerationRequest) -> None:
    missing = backend.capabilities.missing(features(request))
    if missing:
        raise InvalidRequestError(
            f"{missing[0]} is not supported by {backend.engine}.",
            param=missing[0].partition(".")[0],
        )


def _text(chunk: ChatCompletionChunk | CompletionChunk) -> str:
    if isinstance(chunk, CompletionChunk):
        return "".join(choice.text for choice in chunk.choices)
    return "".join(choice.delta.content or "" for choice in chunk.choices)
