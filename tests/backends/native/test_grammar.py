"""What the native backend makes of requests for structured output, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.demo import MODEL_DIR
from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.parsing import parse_request
from axion.text.tool_calls import FORMATS
from axion.types import EngineConfig, Grammar
from tests.backends.native.harness import RecordingEngine
from tests.echo_engine import EchoEngine

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
UNSUPPORTED = {"type": "object", "properties": {"x": {"not": {"type": "null"}}}}


def function(name: str, parameters: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


class Harness:
    def __init__(self, backend: NativeBackend, engine: RecordingEngine) -> None:
        self.backend = backend
        self.engine = engine

    async def chat(self, **fields: Any) -> Grammar | None:
        """The grammar that the engine gets."""
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
        request = parse_request(ChatCompletionRequest, json.dumps(body).encode())
        return await self._grammar(self.backend.chat(request, "r"))

    async def complete(self, **fields: Any) -> Grammar | None:
        body = json.dumps({"model": "m", "prompt": "x", **fields})
        request = parse_request(CompletionRequest, body.encode())
        return await self._grammar(self.backend.complete(request, "r"))

    async def _grammar(self, chunks: Any) -> Grammar | None:
        self.engine.params.clear()
        async with aclosing(chunks):
            async for _ in chunks:
                pass
        grammars = {params.grammar for params in self.engine.params}
        [grammar] = grammars
        return grammar


Start = Callable[..., Awaitable[Harness]]


@pytest.fixture
def start() -> Start:
    async def start(path: Path = MODEL_DIR) -> Harness:
        engine = RecordingEngine(vocab_size=1024)

        async def factory(config: EngineConfig) -> EchoEngine:
            return engine

        backend = NativeBackend(factory)
        await backend.start(ModelConfig(model_name=str(path), served_name="m"))
        return Harness(backend, engine)

    return start


async def test_the_engine_gets_the_grammar_of_each_choice(start: Start):
    model = await start()
    assert await model.chat() is None
    assert await model.chat(guided_regex="a+", n=3) == Grammar("regex", "a+")
    assert len(model.engine.params) == 3
    assert await model.complete(guided_choice=["a"]) == Grammar("choice", '["a"]')
    schema = json.dumps(WEATHER)
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": WEATHER}}
    assert await model.chat(response_format=wanted) == Grammar("json_schema", schema)


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": UNSUPPORTED},
                }
            },
            "response_format",
            '"not"',
        ),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json", "no text"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
        ({"guided_grammar": "start: x"}, "guided_grammar", '"x"'),
        ({"guided_json": {"type": "strin"}}, "guided_json", '"strin"'),
        (
            {
                "tools": [function("f", WEATHER), function("g", UNSUPPORTED, strict=True)],
                "tool_choice": "auto",
            },
            "tools[1].function.parameters",
            '"not"',
        ),
        (
            {"tools": [function("f", {"$ref": "#/nowhere"})], "tool_choice": "required"},
            "tools[0].function.parameters",
            "/nowhere",
        ),
    ],
)
async def test_what_cannot_be_enforced_is_an_error_before_the_answer_begins(
    fields: dict[str, Any], param: str, said: str, start: Start
):
    model = await start()
    with pytest.raises(InvalidRequestError) as caught:
        await model.chat(**fields)
    assert caught.value.param == param
    assert said in caught.value.message
    assert not model.engine.params


@pytest.mark.parametrize(
    ("fields", "is_bound"),
    [
        ({}, False),
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, True),
        ({"parallel_tool_calls": False}, True),
        ({"response_format": {"type": "json_object"}}, True),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "g"}}],
                    },
                }
            },
            True,
        ),
        ({"tools": [function("f", WEATHER, strict=True)]}, True),
    ],
)
async def test_calls_are_bound_only_where_something_is_promised(
    fields: dict[str, Any], is_bound: bool, start: Start
):
    model = await start()
    grammar = await model.chat(**{"tools": [function("f", WEATHER), function("g")], **fields})
    assert (grammar is not None) == is_bound
    if grammar is not None:
        assert grammar.kind == "llguidance"
        assert ('"f\\' in grammar.text) != ("function" in str(fields.get("tool_choice")))


@pytest.mark.parametrize("marker", [marker for marker, _ in FORMATS])
async def test_calls_in_every_format_can_be_promised(
    marker: str, start: Start, tiny_model: Path, tmp_path: Path
):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text("{# " + marker + " #}{{ tools }}{{ messages }}")
    model = await start(tmp_path)
    grammar = await model.chat(tools=[function("f", WEATHER)], tool_choice="required")
    assert grammar is not None
    assert "city" in grammar.text


async def test_a_keyword_that_a_format_has_no_grammar_for_is_named(
    start: Start, tiny_model: Path, tmp_path: Path
):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text("<start_function_call>{{ tools }}")
    model = await start(tmp_path)
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^a"}}}
    with pytest.raises(InvalidRequestError, match='"pattern" is not supported') as caught:
        await model.chat(tools=[function("g"), function("f", schema, strict=True)])
    assert caught.value.param == "tools[1].function.parameters"
    assert await model.chat(tools=[function("f", schema)], tool_choice="required") is not None


async def test_answers_that_must_match_something_else_are_cached_apart(start: Start):
    model = await start()

    async def key(**fields: Any) -> bytes:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
        request = parse_request(ChatCompletionRequest, json.dumps(body).encode())
        return (await model.backend.prepare_chat(request)).cache_key

    def schema(*names: str) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {} for name in names}}

    keys = [
        await key(),
        await key(guided_regex="a"),
        await key(guided_json=schema("a", "b")),
        await key(guided_json=schema("b", "a")),  # the order of properties is that of the answer
        await key(tools=[function("f")]),
        await key(tools=[function("f")], tool_choice="required"),
    ]
    assert len(set(keys)) == len(keys)
    assert await key(guided_regex="a") == await key(structured_outputs={"regex": "a"})
