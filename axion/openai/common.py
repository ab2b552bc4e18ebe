"""What the endpoints share: the sampling fields, usage and the error body."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from axion.errors import InvalidRequestError
from axion.openai.elsewhere import FIELDS_ELSEWHERE
from axion.openai.fields import (
    FAIL_FAST,
    MAX_TOKEN_ID,
    CacheSalt,
    NonEmptyText,
    Priority,
    RequestModel,
    ResponseModel,
    Stop,
    StopString,
    TokenCount,
    TokenId,
    TokenIdText,
    TruncatePromptTokens,
    at_most,
)
from axion.types import MAX_LOGPROBS, MAX_SEED, SamplingParams

MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_ALLOWED_TOKENS = 2**18
FILL_CONTEXT = -1  # as truncate_prompt_tokens: what the answer leaves of the context


class StreamOptions(RequestModel):
    include_usage: bool | None = Field(
        None, description="end the stream with a chunk that has the usage and no choices"
    )
    include_obfuscation: Literal[False] | None = Field(
        None, description="only false: chunks are not padded"
    )
    continuous_usage_stats: bool | None = Field(
        None, description="the usage so far in every chunk; vLLM's extension"
    )


class ModelRequest(RequestModel):
    """A request to a model."""

    model: NonEmptyText | None = Field(
        None, description="may be left out where one model is served"
    )


class StreamableRequest(ModelRequest):
    """A request whose answer can be had while it is being generated."""

    stream: bool | None = Field(None, description="answer as server-sent events")


class GenerationRequest(StreamableRequest):
    """The fields of chat and text completions that mean the same in both."""

    advice = FIELDS_ELSEWHERE

    max_tokens: TokenCount | None = Field(None, description="most tokens to generate, in tokens")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 takes the most likely token every time"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="answers to generate for each prompt"
    )
    stop: Stop | None = Field(None, description="strings that end the answer, not part of it")
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = Field(
        None, description="the same seed gives the same answer"
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[TokenIdText, Annotated[float, Field(ge=-100, le=100)]], at_most(MAX_LOGIT_BIAS)
        ]
        | None
    ) = Field(None, description="token id to what is added to its logit")
    user: str | None = Field(None, description="accepted; has no effect on the answer")

    # Extensions, with the names and meanings that vLLM gave them.
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = Field(
        None, description="-1 or 0 is off"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)] | None = Field(
        None, description="no end before this many tokens, in tokens"
    )
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], FAIL_FAST, at_most(MAX_CHOICES)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Priority | None = Field(
        None, description="where requests wait, a lower one comes first"
    )
    cache_salt: CacheSalt | None = Field(
        None, description="only requests with the same salt share what caches hold"
    )

    truncate_prompt_tokens: TruncatePromptTokens | None = Field(
        None, description="keep so many tokens of the prompt, its last; -1: as many as fit"
    )
    allowed_token_ids: (
        Annotated[list[TokenId], Field(min_length=1), FAIL_FAST, at_most(MAX_ALLOWED_TOKENS)] | None
    ) = Field(None, description="nothing but these tokens is generated")
    bad_words: Annotated[list[StopString], FAIL_FAST, at_most(MAX_BAD_WORDS)] | None = Field(
        None, description="none of these is generated, as far as it is written by the same tokens"
    )
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="likeliest alternatives to report with each token of the prompt"
    )
    return_token_ids: bool | None = Field(
        None, description="report the token ids of the prompt and of the answer"
    )

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is only for requests with stream: true.", param="stream_options"
            )
        return self

    @model_validator(mode="after")
    def _scores_of_the_prompt_need_a_whole_answer(self) -> GenerationRequest:
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "prompt_logprobs is only for requests without stream: true.",
                param="prompt_logprobs",
            )
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequestError(
                "truncate_prompt_tokens must be at least 1, or -1 for as many as fit, got 0.",
                param="truncate_prompt_tokens",
            )
        return self

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether the chunks end with one that has the usage. A whole answer always has it."""
        return not self.stream or bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_every_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate, if the request says so."""
        return self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports no log probabilities at all."""

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the tokens of the prompt."""
        return self.prompt_logprobs

    @property
    def needs_one_engine(self) -> bool:
        """Whether no other engine can go on with the answer: it tells what only who has generated
        the tokens, or scored the prompt, knows."""
        return bool(self.return_token_ids) or self.prompt_logprobs is not None


_SAMPLING_FIELDS = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
)


def sampling_params(
    request: GenerationRequest, *, max_tokens: int | None, defaults: Mapping[str, Any] | None = None
) -> SamplingParams:
    """How the request wants its tokens chosen.

    Args:
        max_tokens: the limit to use; what the request asks for and what fits is the caller's part.
        defaults: SamplingParams fields for what the request leaves open.

    Raises:
        InvalidRequestError: fields contradict each other.
    """
    values: dict[str, Any] = dict(defaults or {})
    for name in _SAMPLING_FIELDS:
        if (value := getattr(request, name)) is not None:
            values[name] = value
    if request.top_k is not None:
        values["top_k"] = max(request.top_k, 0)
    if request.logit_bias:
        values["logit_bias"] = {int(token): bias for token, bias in request.logit_bias.items()}
    if request.stop is not None:
        values["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    for name in ("stop_token_ids", "allowed_token_ids"):
        values[name] = tuple(getattr(request, name) or ())
    return SamplingParams(
        max_tokens=max_tokens,
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs,
        **values,
    )


def stop_reason_field(stop_reason: int | str | None) -> dict[str, Any]:
    """The field of a choice, which is there only where something stopped it."""
    return {} if stop_reason is None else {"stop_reason": stop_reason}


class PromptTokensDetails(ResponseModel):
    cached_tokens: int


class CompletionTokensDetails(ResponseModel):
    reasoning_tokens: int


class Usage(ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None


class UsageSoFar(NamedTuple):
    """What an engine tells with each chunk of an answer. Made for every token, so not validated."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class ErrorDetail(ResponseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ResponseModel):
    error: ErrorDetail
