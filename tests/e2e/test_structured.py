"""Structured output as a user of OpenAI's client meets it, on the bundled model."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from tests.e2e.test_server import Server

MODEL = "axion/demo"
MESSAGES: Any = [{"role": "user", "content": "Give me a JSON object with name Anna and age 30."}]


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=150)


WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "parameters": None}},
]


@pytest.fixture(scope="module")
def chat(server: Server) -> Any:
    def chat(**fields: Any) -> Any:
        values = {"model": MODEL, "messages": MESSAGES, "max_tokens": 300, "seed": 1, **fields}
        return server.openai.chat.completions.create(**values)

    return chat


def test_the_client_parses_what_it_asked_for(server: Server):
    answer = server.openai.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Person, temperature=0
    )
    assert answer.choices[0].message.parsed == Person(name="Anna", age=30)


@pytest.mark.parametrize("temperature", [0, 1])
def test_every_choice_follows_the_schema(chat: Any, temperature: float):
    answer = chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "w", "schema": WEATHER, "strict": True},
        },
        temperature=temperature,
        n=4,
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), WEATHER)


def test_a_streamed_answer_is_the_whole_one_with_its_log_probabilities(chat: Any):
    fields = {
        "response_format": {"type": "json_object"},
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = chat(**fields).choices[0]
    chunks = [chunk.choices[0] for chunk in chat(**fields, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert isinstance(json.loads(whole.message.content), dict)
    streamed = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert streamed == whole.logprobs.content
    assert "".join(entry.token for entry in streamed) == whole.message.content


@pytest.mark.parametrize("field", ["structured_outputs", "guided"])
def test_vllms_fields(chat: Any, field: str):
    def answer(kind: str, value: Any) -> str:
        old = {f"guided_{kind}": value}
        body = old if field == "guided" else {"structured_outputs": {kind: value}}
        text = chat(extra_body=body, temperature=1).choices[0].message.content
        assert isinstance(text, str)
        return text

    assert re.fullmatch(r"[A-C]-[0-9]{3}", answer("regex", r"[A-C]-\d{3}"))
    assert answer("choice", ["yes", "no", "perhaps"]) in {"yes", "no", "perhaps"}
    assert re.fullmatch(r"[0-9]\+[0-9]", answer("grammar", 'start: D "+" D\nD: /[0-9]/'))
    jsonschema.validate(json.loads(answer("json", WEATHER)), WEATHER)


def test_text_completions_follow_a_grammar_too(server: Server):
    answer = server.openai.completions.create(
        model=MODEL, prompt="20 + 22 =", extra_body={"guided_regex": r" \d\d"}, max_tokens=10
    )
    assert re.fullmatch(r" [0-9]{2}", answer.choices[0].text)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", [None, "get_weather", "get_time"])
def test_a_call_that_must_be_made_is_made(
    chat: Any, name: str | None, stream: bool, temperature: float
):
    choice = {"type": "function", "function": {"name": name}} if name else "required"
    for seed in range(3):
        fields = {
            "messages": [{"role": "user", "content": "Hello, who are you?"}],
            "tools": TOOLS,
            "tool_choice": choice,
            "parallel_tool_calls": name is None,
            "temperature": temperature,
            "seed": seed,
        }
        calls, finish_reason, content = called(chat, fields, stream)
        if finish_reason == "length":
            continue  # several calls may be any number
        assert finish_reason == "tool_calls"
        assert not content
        assert len(calls) == 1 if name else calls
        for called_name, arguments in calls:
            assert called_name == name or name is None
            schema = WEATHER if called_name == "get_weather" else {"maxProperties": 0}
            jsonschema.validate(json.loads(arguments), schema)


def called(
    chat: Any, fields: dict[str, Any], stream: bool
) -> tuple[list[tuple[str, str]], str, str]:
    """The calls of an answer, why it ended, and its text."""
    if not stream:
        [choice] = chat(**fields).choices
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
        return calls, choice.finish_reason, choice.message.content or ""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    content, finish_reason = "", ""
    for chunk in chat(**fields, stream=True):
        [choice] = chunk.choices
        content += choice.delta.content or ""
        finish_reason = choice.finish_reason or finish_reason
        for call in choice.delta.tool_calls or ():
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    return [(names[i], arguments[i]) for i in sorted(names)], finish_reason, content


def test_a_model_that_may_call_still_calls_well(chat: Any):
    tool = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    answer = chat(
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[tool],
        parallel_tool_calls=False,
        temperature=0,
    )
    for call in answer.choices[0].message.tool_calls or ():
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    text = chat(messages=[{"role": "user", "content": "Hello"}], tools=[tool], temperature=0)
    assert text.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_enforced_is_a_400_that_names_the_keyword(chat: Any, stream: bool):
    schema = {"type": "array", "uniqueItems": True}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        chat(response_format=wanted, stream=stream)
    assert caught.value.param == "response_format"
    assert '"uniqueItems"' in caught.value.message
