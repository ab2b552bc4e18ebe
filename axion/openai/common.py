"""What the endpoints share: parsing a body, the sampling fields, usage and the error body."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema, from_json

from axion.errors import InvalidRequestError
from axion.types import MAX_SEED, MAX_STOP_STRINGS, SamplingParams

MAX_CHOICES = 128
MAX_STOP_CHARS = 1024
MAX_LOGIT_BIAS = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_SALT_CHARS = 256
_SHOWN_CHARS = 60


class RequestModel(BaseModel):
    """A JSON object of a request: strict types, and no field that it does not know.

    Every optional field may be null, which means the same as leaving it out.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_field(cls, data: Any) -> Any:
        # Before pydantic's own check, which would build an error for each of a million fields.
        if isinstance(data, dict):
            names = _json_names(cls)
            for name in data:
                if name not in names:
                    known = difflib.get_close_matches(name[:_SHOWN_CHARS], names, n=1)
                    hint = f" (do you mean {known[0]}?)" if known else ""
                    raise field_error(name, f"is not a known field{hint}")
        return data


@functools.cache
def _json_names(model: type[RequestModel]) -> dict[str, None]:
    """The names that a model's fields have in JSON."""
    return {field.alias or name: None for name, field in model.model_fields.items()}


class ResponseModel(BaseModel):
    """A JSON object of an answer.

    A field without a default is always in the JSON, null or not; one with a default is in it
    only when it was given.
    """

    model_config = ConfigDict(extra="forbid")

    def to_json(self) -> bytes:
        return self.__pydantic_serializer__.to_json(self, exclude_unset=True)


def field_error(field: str, problem: str) -> PydanticCustomError:
    """An error about a field of the object under validation: `problem` follows its name."""
    return PydanticCustomError("field", "{problem}", {"field": field, "problem": problem})


@dataclass(frozen=True, eq=False)
class Refused:
    """A value that OpenAI's API has and this server does not serve: refused, with the reason.

    Null, and what is listed in `unless`, is let through.
    """

    reason: str
    unless: tuple[JsonValue, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        what = "no other value is supported" if self.unless else "not supported"
        return {**handler(schema), "description": f"{what}: {self.reason}"}

    def _check(self, value: JsonValue) -> JsonValue:
        if value is None or value in self.unless:
            return value
        raise problem(f"is not supported (got {_shown(value)}): {self.reason}")


def problem(text: str) -> PydanticCustomError:
    """An error about the value under validation: `text` follows the field's name."""
    return PydanticCustomError("problem", "{problem}", {"problem": text})


@dataclass(frozen=True)
class at_most:  # noqa: N801
    """Refuses a longer list or object before any of its items is looked at."""

    limit: int

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        result = handler(schema)
        bound = "maxItems" if result.get("type") == "array" else "maxProperties"
        return {**result, bound: self.limit}

    def _check(self, value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > self.limit:
            raise problem(f"must have at most {self.limit} entries, got {len(value)}")
        return value


def only_types(types: Sequence[str], reason: str) -> BeforeValidator:
    """Refuses an object whose `type` is another one before its fields are looked at."""
    names = ", ".join(map(repr, types))
    expected = names if len(types) == 1 else f"one of {names}"

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in types:
            got = repr(kind[:_SHOWN_CHARS])
            raise field_error("type", f"must be {expected}: {reason}, got {got}")
        return value

    return BeforeValidator(check)


def _is_token_id(text: str) -> str:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_TOKEN_ID):
        raise problem("is not a token id")
    return text


def check_numbers(value: Any) -> Any:
    """Refuses numbers that other readers of JSON cannot take, such as 1e999 and 2**64."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif (isinstance(item, float) and not math.isfinite(item)) or (
            isinstance(item, int) and not -(2**63) <= item < 2**63
        ):
            raise problem("has a number that is too large")
    return value


def text_or_list(value: Any) -> str | None:
    """Discriminates `string | list` by JSON type."""
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, list) else None


# One fault is enough to report; a body can hold a million.
FAIL_FAST: Any = Field(fail_fast=True)

NonEmptyText = Annotated[str, Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    Annotated[StopString, Tag("text")]
    | Annotated[list[StopString], FAIL_FAST, at_most(MAX_STOP_STRINGS), Tag("list")],
    Discriminator(
        text_or_list,
        custom_error_type="expected",
        custom_error_message="a string or a list of strings",
    ),
]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)]
Priority = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKEN_ID)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIdText = Annotated[str, AfterValidator(_is_token_id)]
Object = Annotated[dict[str, Any], AfterValidator(check_numbers)]


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

    model: NonEmptyText
    stream: bool | None = Field(None, description="answer as server-sent events")


class GenerationRequest(StreamableRequest):
    """The fields of chat and text completions that mean the same in both."""

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

    prompt_logprobs: Annotated[
        None, Refused("`echo` with `logprobs` of /v1/completions has what it gives")
    ] = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is only for requests with stream: true.", param="stream_options"
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
    def num_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports no log probabilities at all."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for the tokens of the prompt."""
        return None


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
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    defaults: Mapping[str, Any] | None = None,
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
    if request.stop_token_ids:
        values["stop_token_ids"] = tuple(request.stop_token_ids)
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


RequestT = TypeVar("RequestT", bound=RequestModel)


def parse_request(model: type[RequestT], data: bytes) -> RequestT:
    """The request in a JSON body.

    Raises:
        InvalidRequestError: the body is not JSON, or a field is at fault; `param` names it.
    """
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"The request body is not valid JSON: {error}.") from None
    return validate_request(model, body)


def validate_request(model: type[RequestT], body: JsonValue) -> RequestT:
    """The request in a decoded JSON body; raises as `parse_request` does."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise _invalid_request(fault, body) from None


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
}


def _invalid_request(fault: ErrorDetails, body: JsonValue) -> InvalidRequestError:
    kind, context = fault["type"], fault.get("ctx", {})
    path = _path_in(body, fault["loc"])
    if kind == "field":
        path.append(context["field"])
        text = context["problem"]
    elif kind == "expected":
        text = f"must be {fault['msg']}, got {_shown(fault['input'])}"
    elif kind == "missing":
        path.append(fault["loc"][-1])
        text = "is required"
    elif kind == "problem":
        text = fault["msg"]
    elif kind == "union_tag_not_found":
        path.append(context["discriminator"].strip("'"))
        text = "is required"
    elif kind == "union_tag_invalid":
        name = context["discriminator"].strip("'")
        path.append(name)
        text = f"must be one of {context['expected_tags']}, got {_shown(fault['input'][name])}"
    elif kind in {"too_short", "string_too_short"}:
        text = "must not be empty"
    elif kind == "string_too_long":
        limit, length = context["max_length"], len(fault["input"])
        text = f"must be at most {limit} characters long, got {length}"
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind].format_map(
            {
                name: f"{bound:g}" if isinstance(bound, float) else bound
                for name, bound in context.items()
            }
        )
        text = f"must be {expected}, got {_shown(fault['input'])}"
    else:
        text = f"is wrong: {fault['msg']}"
    param = _joined(path)
    return InvalidRequestError(f"{param or 'The request body'} {text}.", param=param or None)


def _path_in(body: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """`location` without the names that pydantic adds for the branches of a union."""
    path: list[int | str] = []
    for step in location:
        inside = (
            step in body
            if isinstance(body, dict)
            else isinstance(body, list) and isinstance(step, int) and step < len(body)
        )
        if inside:
            path.append(step)
            body = body[step]
    return path


def _joined(path: list[int | str]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if step.isidentifier() and len(step) <= _SHOWN_CHARS else _shown(step)
            text += f".{name}" if text else name
    return text


def _shown(value: JsonValue) -> str:
    """A short, printable form of a value that a client sent."""
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value[:_SHOWN_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARS + 2 else f"{text[:_SHOWN_CHARS]}…"
