"""A walk over the clients' request types: whatever they can hold is taken, or refused by name.

The packages `openai` and `anthropic` are generated from the makers' specifications.
A new version that adds a field fails here until somebody decides what the field does.
"""

from __future__ import annotations

import collections.abc
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    IO,
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

import pydantic
import pytest
import typing_extensions
from anthropic.types import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsStreaming as MessageParams
from openai.types import EmbeddingCreateParams
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as TextParams
from openai.types.responses.response_create_params import (
    ResponseCreateParamsStreaming as ResponseParams,
)

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.embeddings import EmbeddingRequest
from axion.openai.fields import RequestModel
from axion.openai.messages import CountTokensRequest, MessagesRequest
from axion.openai.parsing import parse_request
from axion.openai.responses import ResponsesRequest

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
MAX_DEPTH = 8
LISTS = {list, collections.abc.Iterable, collections.abc.Sequence}
FILES = {IO[bytes], os.PathLike}  # their content travels as text
PLAIN = {str: "a", int: 1, float: 1.0, bool: True, object: {"type": "object"}}


def unknown_type(annotation: Any) -> NoReturn:
    raise AssertionError(f"the walk has no value of {annotation}")


def values(annotation: Any, depth: int = 0) -> Iterator[Any]:
    """One value or more of a type: of a union each member, of an object each of its fields."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if depth > MAX_DEPTH or annotation is NoneType or annotation in FILES:
        return
    if annotation in PLAIN:
        yield PLAIN[annotation]
    elif is_typeddict(annotation) or typing_extensions.is_typeddict(annotation):
        yield from objects(annotation, depth)
    elif isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield from answers(annotation, depth)
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
    elif origin is dict and arguments[1] is object:
        yield PLAIN[object]
    elif origin is dict:
        for value in values(arguments[1], depth + 1):
            yield {"1": value}
    else:
        unknown_type(annotation)


def objects(typed_dict: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The object with its required fields, and with each value of each field."""
    hints = get_type_hints(typed_dict, include_extras=True)
    # Not `__required_keys__`, which is blind to annotations that are kept as text.
    least = {}
    for name, annotation in hints.items():
        if get_origin(annotation) is Required:
            value = next(values(annotation, depth + 1), None)
            if value is None:  # too deep, or a file
                return
            least[name] = value
    yield least
    for name, annotation in hints.items():
        for value in values(annotation, depth + 1):
            yield {**least, name: value}


def answers(model: type[pydantic.BaseModel], depth: int) -> Iterator[dict[str, Any]]:
    """What an answer of this type has in it when a client sends it back, nulls included."""
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    full = {name: next(values(fields[name], depth + 1), None) for name in fields}
    yield full
    for name, annotation in fields.items():
        for value in values(annotation, depth + 1):
            yield {**full, name: value}


def cases(typed_dict: Any) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, annotation in sorted(get_type_hints(typed_dict).items())
        if name != "model"
        for value in values(annotation)
    ]


USER = {"role": "user", "content": "Hi."}
CHAT = {"model": "m", "messages": [USER]}
KINDS: list[tuple[type[RequestModel], Any, dict[str, Any]]] = [
    (ChatCompletionRequest, ChatParams, CHAT),
    (CompletionRequest, TextParams, {"model": "m", "prompt": "Hi."}),
    (ResponsesRequest, ResponseParams, {"model": "m", "input": "Hi."}),
    (EmbeddingRequest, EmbeddingCreateParams, {"model": "m", "input": "Hi."}),
    (MessagesRequest, MessageParams, CHAT | {"max_tokens": 9}),
    (CountTokensRequest, MessageCountTokensParams, CHAT),
]
IDS = ["chat", "text", "responses", "embeddings", "messages", "count_tokens"]


def fault(model: type[RequestModel], body: dict[str, Any]) -> InvalidRequestError | None:
    """What is wrong with a request, or with the request for chat that it becomes."""
    try:
        request = parse_request(model, json.dumps(body).encode())
        if isinstance(request, ResponsesRequest):
            request.chat(request.items())
        if isinstance(request, CountTokensRequest):
            request.chat()
    except InvalidRequestError as error:
        return error
    return None


@pytest.mark.parametrize(("model", "params", "base"), KINDS, ids=IDS)
def test_every_value_of_the_clients_types_is_taken_or_refused_by_name(
    model: type[RequestModel], params: Any, base: dict[str, Any]
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
    assert len(taken) > len(get_type_hints(params)) // 3


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


@pytest.mark.parametrize("model", [kind[0] for kind in KINDS], ids=IDS)
def test_every_field_is_in_the_api_reference(model: type[RequestModel]):
    named = set(re.findall(r"`([a-z_]+)[`.]", API))
    assert set(model.model_fields) - named == set()
