"""How fields of requests are checked, so that what is wrong is said in one sentence."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

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
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from axion.types import MAX_SEED, MAX_STOP_STRINGS

MAX_STOP_CHARS = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_SALT_CHARS = 256
SHOWN_CHARS = 60


class RequestModel(BaseModel):
    """A JSON object of a request: strict types, and no field that it does not know.

    Every optional field may be null, which means the same as leaving it out.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
    # What to send in place of fields that other servers have.
    advice: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _knows_every_field(cls, data: Any) -> Any:
        # Before pydantic's own check, which would build an error for each of a million fields.
        if isinstance(data, dict):
            names = _json_names(cls)
            for name in data:
                if name not in names:
                    if name in cls.advice:
                        raise field_error(name, f"is not a field here: {cls.advice[name]}")
                    known = difflib.get_close_matches(name[:SHOWN_CHARS], names, n=1)
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
        raise problem(f"is not supported (got {shown(value)}): {self.reason}")


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
            got = repr(kind[:SHOWN_CHARS])
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
PartT = TypeVar("PartT")
# The content of a message.
TextOrParts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[PartT], Field(min_length=1), FAIL_FAST, Tag("list")],
    Discriminator(
        text_or_list,
        custom_error_type="expected",
        custom_error_message="a string or a list of text parts",
    ),
]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)]
Priority = Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKEN_ID)]
# How much of a prompt is kept; -1: what the model takes.
TruncatePromptTokens = Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIdText = Annotated[str, AfterValidator(_is_token_id)]
Object = Annotated[dict[str, Any], AfterValidator(check_numbers)]


def shown(value: JsonValue) -> str:
    """A short, printable form of a value that a client sent."""
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value[:SHOWN_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN_CHARS + 2 else f"{text[:SHOWN_CHARS]}…"
