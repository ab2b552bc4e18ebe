"""What servers send. Fields that are not named here are skipped without being decoded."""

from __future__ import annotations

from typing import Any

import msgspec


class ModelCard(msgspec.Struct):
    id: str


class ModelList(msgspec.Struct):
    data: list[ModelCard]


class Tokenized(msgspec.Struct):
    tokens: list[int]
    max_model_len: int
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def num_cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0

    @property
    def num_reasoning(self) -> int | None:
        details = self.completion_tokens_details
        return details.reasoning_tokens if details is not None else None


class Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Logprob):
    top_logprobs: list[Logprob] | None = None


class Logprobs(msgspec.Struct):
    """A chat's `content`, or the lists of text completions."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] | None = None


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class Choice(msgspec.Struct):
    index: int = 0
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class ChatChoice(Choice):
    """Attributes:
    message: of a whole answer, in place of `delta`.
    """

    delta: Delta | None = None
    message: Delta | None = None


class TextChoice(Choice):
    text: str | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Timings(msgspec.Struct):
    """Of llama.cpp: the tokens of one choice so far."""

    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


NO_ERROR = msgspec.Raw(b"null")


class Event(msgspec.Struct):
    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = NO_ERROR
    choices: list[Any] | None = None


class ChatEvent(Event):
    choices: list[ChatChoice] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class TextEvent(Event):
    choices: list[TextChoice] | None = None
