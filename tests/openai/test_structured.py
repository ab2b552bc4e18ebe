"""Requests that say what their answer must match."""

from __future__ import annotations

import json
from typing import Any

import pytest

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.parsing import parse_request
from axion.openai.structured import Constraint
from axion.types import MAX_GRAMMAR_CHARS, Grammar

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
BY_SCHEMA = Grammar("json_schema", json.dumps(SCHEMA))
ANY_OBJECT = Grammar("json_schema", '{"type": "object"}')
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")]


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return parse_request(ChatCompletionRequest, json.dumps(body).encode())


def complete(**fields: Any) -> CompletionRequest:
    return parse_request(CompletionRequest, json.dumps({"model": "m", "prompt": "x", **fields}))


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", **fields}}


EXTENSIONS = [
    ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", BY_SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json", BY_SCHEMA),
    ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object", ANY_OBJECT),
    ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", Grammar("regex", "a+")),
    (
        {"structured_outputs": {"choice": ["a", "b"]}},
        "structured_outputs.choice",
        Grammar("choice", '["a", "b"]'),
    ),
    (
        {"structured_outputs": {"grammar": 'start: "a"', "regex": None}},
        "structured_outputs.grammar",
        Grammar("grammar", 'start: "a"'),
    ),
    ({"guided_json": SCHEMA}, "guided_json", BY_SCHEMA),
    ({"guided_regex": "a+"}, "guided_regex", Grammar("regex", "a+")),
    ({"guided_choice": ["a"]}, "guided_choice", Grammar("choice", '["a"]')),
    ({"guided_grammar": 'root ::= "a"'}, "guided_grammar", Grammar("grammar", 'root ::= "a"')),
]


CONSTRAINTS = [
    ({"response_format": {"type": "json_object"}}, "response_format", ANY_OBJECT),
    ({"response_format": json_schema()}, "response_format", ANY_OBJECT),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, "response_format", BY_SCHEMA),
    (
        {"response_format": json_schema(schema=SCHEMA, strict=True, description="d")},
        "response_format",
        BY_SCHEMA,
    ),
    *EXTENSIONS,
]


@pytest.mark.parametrize(("fields", "param", "grammar"), CONSTRAINTS)
def test_each_field_becomes_a_grammar(fields: dict, param: str, grammar: Grammar):
    assert chat(**fields).constraint == Constraint(param, grammar)
    assert complete(**fields).constraint == Constraint(param, grammar)


def test_no_field_is_no_constraint():
    assert chat().constraint is None
    assert chat(response_format={"type": "text"}, guided_regex=None).constraint is None
    assert complete().constraint is None


HUGE = "a" * (MAX_GRAMMAR_CHARS + 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"name": "n"}}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "text", "value": SCHEMA}}, "response_format.value"),
        ({"response_format": {**json_schema(), "value": SCHEMA}}, "response_format.value"),
        ({"response_format": {"type": "json_object", "value": "{}"}}, "response_format.value"),
        ({"response_format": json_schema(name="a b")}, "response_format.json_schema.name"),
        ({"response_format": json_schema(schema=[])}, "response_format.json_schema.schema"),
        (
            {"response_format": json_schema(schema={"const": 2**64})},
            "response_format.json_schema.schema",
        ),
        ({"response_format": json_schema(schema={"const": HUGE})}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice[1]"),
        ({"structured_outputs": {"choice": ["a"] * 10_001}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [HUGE]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a", "structural_tag": "x"}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_grammar": HUGE}, "guided_grammar"),
        ({"guided_json": json.dumps({"const": HUGE})}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict, param: str):
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("tool_choice", "names", "required", "max_one"),
    [
        (None, ["f", "g", "h"], False, False),
        ("auto", ["f", "g", "h"], False, False),
        ("none", [], False, False),
        ("required", ["f", "g", "h"], True, False),
        ({"type": "function", "function": {"name": "g"}}, ["g"], True, True),
        ({"function": {"name": "g"}}, ["g"], True, True),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [TOOLS[0], TOOLS[2]]},
            },
            ["f", "h"],
            False,
            False,
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[1]]}},
            ["g"],
            True,
            False,
        ),
    ],
)
def test_tool_choice_says_what_may_and_what_must_be_called(
    tool_choice: Any, names: list[str], required: bool, max_one: bool
):
    request = chat(tools=TOOLS, tool_choice=tool_choice)
    assert [tool.function.name for tool in request.callable_tools.values()] == names
    assert request.requires_call == required
    assert request.max_one_call == max_one
    # Written as JSON again, for the key of the response cache; a warning is an error.
    assert json.loads(request.model_dump_json(exclude_unset=True))["tool_choice"] == tool_choice
    assert chat(tools=TOOLS, parallel_tool_calls=False).max_one_call


def test_every_tool_choice_keeps_all_tools_in_the_prompt():
    request = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}})
    assert [tool["function"]["name"] for tool in request.template_tools() or ()] == ["f", "g", "h"]
