"""A walk over OpenAI's own request types: whatever they can hold is taken, or refused by name.

The `openai` package is generated from OpenAI's specification. A new version that adds a field
fails here until somebody decides what the field does.
"""

from __future__ import annotations

import collections.abc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pytest
import typing_extensions
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as TextParams

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import GenerationRequest, parse_request
from axion.openai.completions import CompletionRequest

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
MAX_DEPTH = 8
LISTS = {list, collections.abc.Iterable, collections.abc.Sequence}
PLAIN = {str: "a", int: 1, float: 1.0, bool: True, object: {"type": "object"}}


def unknown_type(annotation: Any) -> NoReturn:
    raise AssertionError(f"the walk has no value of {annotation}")


def values(annotation: Any, depth: int = 0) -> Iterator[Any]:
    """One value or more of a type: of a union each member, of an object each of its fields."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if depth > MAX_DEPTH or annotation is NoneType:
        return
    if annotation in PLAIN:
        yield PLAIN[annotation]
    elif is_typeddict(annotation) or typing_extensions.is_typeddict(annotation):
        yield from objects(annotation, depth)
    elif origin in (Union, UnionType):
        for member in arguments:
            yield from values(member, depth)
    elif origin in (Required, NotRequired, Annotated):
        yield from values(arguments[0], depth)
    elif origin is Literal:
        yield from arguments
    elif origin in LISTS:
        for value in values(arguments[0], depth + 1):
            yield [value]
    elif origin is dict:
        for value in values(arguments[1], depth + 1):
            yield {"1": value}
    else:
        unknown_type(annotation)


def objects(typed_dict: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The object with its required fields, and with each value of each field."""
    hints = get_type_hints(typed_dict)
    least = {
        name: next(values(hints[name], depth + 1)) for name in sorted(typed_dict.__required_keys__)
    }
    yield least
    for name, annotation in hints.items():
        for value in values(annotation, depth + 1):
            yield {**least, name: value}


def cases(typed_dict: Any) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, annotation in sorted(get_type_hints(typed_dict).items())
        if name != "model"
        for value in values(annotation)
    ]


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi."}]}
TEXT = {"model": "m", "prompt": "Hi."}
KINDS: list[tuple[type[GenerationRequest], Any, dict[str, Any]]] = [
    (ChatCompletionRequest, ChatParams, CHAT),
    (CompletionRequest, TextParams, TEXT),
]


def fault(model: type[GenerationRequest], body: dict[str, Any]) -> InvalidRequestError | None:
    try:
        parse_request(model, json.dumps(body).encode())
    except InvalidRequestError as error:
        return error
    return None


@pytest.mark.parametrize(("model", "params", "base"), KINDS, ids=["chat", "text"])
def test_every_value_of_openais_types_is_taken_or_refused_by_name(
    model: type[GenerationRequest], params: Any, base: dict[str, Any]
):
    taken = set()
    for name, value in cases(params):
        error = fault(model, {**base, name: value})
        if error is None:
            taken.add(name)
        else:
            shown = f"{name} = {json.dumps(value)}: {error.message}"
            assert "is not a known field" not in error.message, shown
            assert error.param is not None, shown
    assert len(taken) > 10


def test_the_walk_reaches_the_innermost_fields():
    text = json.dumps([value for _, value in cases(ChatParams)])
    for field in (
        "image_url",
        "tool_call_id",
        "arguments",
        "strict",
        "json_schema",
        "prompt_cache",
    ):
        assert field in text


@pytest.mark.parametrize("model", [ChatCompletionRequest, CompletionRequest])
def test_every_field_is_in_the_api_reference(model: type[GenerationRequest]):
    named = set(re.findall(r"`([a-z_]+)[`.]", API))
    assert set(model.model_fields) - named == set()
