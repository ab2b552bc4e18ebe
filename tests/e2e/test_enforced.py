"""What chat promises of calls and formats, kept by `/v1/responses` and `/v1/messages` too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import pytest

from tests.e2e.test_server import Server
from tests.e2e.test_structured import MODEL, WEATHER

HELLO: Any = [{"role": "user", "content": "Hello, who are you?"}]
# Two that every answer has an end for.
NAMES = ("get_weather", "look_up")
OPENAI_TOOLS: Any = [
    {"type": "function", "name": name, "parameters": WEATHER, "strict": None} for name in NAMES
]
ANTHROPIC_TOOLS: Any = [{"name": name, "input_schema": WEATHER} for name in NAMES]


@pytest.fixture(scope="module")
def claude(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def respond(server: Server, *, stream: bool, **fields: Any) -> Any:
    body = {"model": MODEL, "input": HELLO, "max_output_tokens": 400, "store": False, **fields}
    if not stream:
        return server.openai.responses.create(**body)
    *_, last = server.openai.responses.create(**body, stream=True)
    return last.response


def message(claude: anthropic.Anthropic, *, stream: bool, temperature: float, **fields: Any) -> Any:
    # The client has no argument for it any more.
    extra = {"temperature": temperature}
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 400, "extra_body": extra, **fields}
    if not stream:
        return claude.messages.create(**body)
    with claude.messages.stream(**body) as events:
        return events.get_final_message()


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
class TestResponses:
    def test_a_format_is_followed(self, server: Server, stream: bool, temperature: float):
        wanted = {"type": "json_schema", "name": "w", "schema": WEATHER, "strict": True}
        answer = respond(server, stream=stream, text={"format": wanted}, temperature=temperature)
        assert answer.status == "completed"
        jsonschema.validate(json.loads(answer.output_text), WEATHER)

    @pytest.mark.parametrize(
        ("choice", "allowed"),
        [
            ("required", NAMES),
            ({"type": "function", "name": "look_up"}, ("look_up",)),
            (
                {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "look_up"}],
                },
                ("look_up",),
            ),
        ],
        ids=["required", "named", "allowed"],
    )
    def test_a_call_that_must_be_made_is_made(
        self, server: Server, stream: bool, temperature: float, choice: Any, allowed: Any
    ):
        answer = respond(
            server,
            stream=stream,
            tools=OPENAI_TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=temperature,
        )
        assert answer.status == "completed"
        [call] = answer.output
        assert (call.type, call.name in allowed) == ("function_call", True)
        jsonschema.validate(json.loads(call.arguments), WEATHER)

    def test_none_calls_nothing(self, server: Server, stream: bool, temperature: float):
        answer = respond(
            server,
            stream=stream,
            input="What is the weather in Paris?",
            tools=OPENAI_TOOLS,
            tool_choice="none",
            temperature=temperature,
        )
        assert {item.type for item in answer.output} == {"message"}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
class TestMessages:
    def test_a_format_is_followed(
        self, claude: anthropic.Anthropic, stream: bool, temperature: float
    ):
        config = {"format": {"type": "json_schema", "schema": WEATHER}}
        answer = message(claude, stream=stream, output_config=config, temperature=temperature)
        assert answer.stop_reason == "end_turn"
        [text] = answer.content
        jsonschema.validate(json.loads(text.text), WEATHER)

    @pytest.mark.parametrize(
        ("choice", "allowed"),
        [({"type": "any"}, NAMES), ({"type": "tool", "name": "look_up"}, ("look_up",))],
        ids=["any", "tool"],
    )
    def test_a_tool_that_must_be_used_is_used(
        self,
        claude: anthropic.Anthropic,
        stream: bool,
        temperature: float,
        choice: Any,
        allowed: Any,
    ):
        answer = message(
            claude,
            stream=stream,
            tools=ANTHROPIC_TOOLS,
            tool_choice={**choice, "disable_parallel_tool_use": True},
            temperature=temperature,
        )
        assert answer.stop_reason == "tool_use"
        [use] = answer.content
        assert (use.type, use.name in allowed) == ("tool_use", True)
        jsonschema.validate(use.input, WEATHER)
