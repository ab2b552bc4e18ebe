"""The bundled model goes on with an answer that broke off, wherever it did."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.backends.native.engine import spawn_engine
from axion.errors import CannotContinueError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.delivered import Delivered, DeliveredCall, DeliveredChoice
from axion.openai.parsing import parse_request

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
STREAM: dict[str, Any] = {
    "model": "m",
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[NativeBackend]:
    backend = NativeBackend(spawn_engine)
    model = ModelConfig(
        model_name="axion/demo", device="cpu", num_threads=1, kv_cache_bytes=2**26, max_seq_len=512
    )
    await backend.start(model)
    try:
        yield backend
    finally:
        await backend.stop(0)


def chat(text: str, **fields: Any) -> ChatCompletionRequest:
    body = {**STREAM, "messages": [{"role": "user", "content": text}], **fields}
    return parse_request(ChatCompletionRequest, json.dumps(body).encode())


def completion(prompt: Any, **fields: Any) -> CompletionRequest:
    return parse_request(
        CompletionRequest, json.dumps({**STREAM, "prompt": prompt, **fields}).encode()
    )


def run(
    backend: NativeBackend, request: Any, name: str, delivered: Delivered | None = None
) -> AsyncGenerator[Any, None]:
    start = backend.chat if isinstance(request, ChatCompletionRequest) else backend.complete
    return start(request, name, delivered=delivered)


async def all_of(chunks: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


def taken(chunks: list[Any]) -> Delivered:
    delivered = Delivered()
    for chunk in chunks:
        delivered.take(chunk)
    return delivered


def text_of(delivered: Delivered) -> dict[int, Any]:
    return {
        i: (c.reasoning, c.content, [(call.name, call.arguments) for call in c.calls], c.finished)
        for i, c in delivered.choices.items()
    }


async def share_of_equal_cuts(backend: NativeBackend, request: Any) -> float:
    """The answer is cut between any two chunks; how many of the continuations are it again.

    Each of them is one stream with what came before.
    """
    chunks = await all_of(run(backend, request, "whole"))
    whole = taken(chunks)

    async def continued(cut: int) -> bool:
        delivered = taken(chunks[:cut])
        ids = {i: [call.id for call in c.calls] for i, c in delivered.choices.items()}
        rest = await all_of(run(backend, request, f"cut-{cut}", delivered))
        both = chunks[:cut] + rest
        result = taken(both)
        parts = [part for chunk in both for part in chunk.choices]
        finished = [part.index for part in parts if part.finish_reason is not None]
        assert sorted(finished) == sorted(whole.choices), "one finish_reason each"
        if isinstance(request, ChatCompletionRequest):
            roles = [part.index for part in parts if part.delta.role is not None]
            assert sorted(roles) == sorted(whole.choices), "one role each"
        for i, before in ids.items():
            assert [call.id for call in result.choices[i].calls][: len(before)] == before
        reasons = {part.index: part.finish_reason for part in parts if part.finish_reason}
        assert reasons.keys() == whole.choices.keys()
        if text_of(result) != text_of(whole):
            return False
        usage, expected = result.usage, whole.usage
        assert usage is not None
        assert expected is not None
        assert usage.prompt_tokens == expected.prompt_tokens
        # The token that ended a choice is not in its text, nor is what a stop string cut off, and
        # a model that is held to a grammar does not write the tokens that its tokenizer would.
        assert abs(expected.completion_tokens - usage.completion_tokens) <= 2
        return True

    cuts = range(len(chunks))
    results = []
    for start in range(0, len(chunks), 10):
        some = cuts[start : start + 10]
        results += await asyncio.gather(*map(continued, some))
    return sum(results) / len(results)


@pytest.mark.parametrize(
    "request_",
    [
        chat("What is 12 + 30?"),
        chat("What is the capital of France?", n=2),
        chat("Hello! Who are you?", max_tokens=9),
        chat("Hello! Who are you?", stop=["a", "e "], min_tokens=6),
        chat("What is 7 + 8?", logprobs=True, top_logprobs=2),
        chat("What is the weather in Rome?", tools=[WEATHER]),
        chat(
            "What is the weather in Paris?",
            tools=[WEATHER],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=36,
        ),
        chat(
            "Bob is 42 years old.",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": SCHEMA},
            },
        ),
        completion("The capital of", max_tokens=12),
        completion(["The capital of", "One plus"], max_tokens=8, echo=True, logprobs=1, n=2),
    ],
    ids=lambda request: str(len(request.model_dump_json(exclude_defaults=True))),
)
async def test_greedy_continuations_are_the_uninterrupted_answer(
    backend: NativeBackend, request_: Any
):
    share = await share_of_equal_cuts(backend, request_)
    assert share >= 0.9


async def test_log_probabilities_go_on_where_they_were(backend: NativeBackend):
    request = completion("The capital of", max_tokens=12, echo=True, logprobs=0)
    chunks = await all_of(run(backend, request, "whole"))

    def offsets(chunks: list[Any]) -> list[tuple[int, str]]:
        scores = [part.logprobs for chunk in chunks for part in chunk.choices if part.logprobs]
        return [pair for s in scores for pair in zip(s.text_offset, s.tokens, strict=True)]

    for cut in range(1, len(chunks) - 2):
        rest = await all_of(run(backend, request, "cut", taken(chunks[:cut])))
        assert offsets(chunks[:cut]) + offsets(rest) == offsets(chunks)


async def test_what_has_finished_is_not_computed_again(backend: NativeBackend):
    request = chat("What is 12 + 30?", n=2)
    chunks = await all_of(run(backend, request, "whole"))
    [last] = await all_of(run(backend, request, "rest", taken(chunks[:-1])))
    assert last.choices == []
    assert last.usage.prompt_tokens == chunks[-1].usage.prompt_tokens


@pytest.mark.parametrize(
    ("choice", "fields"),
    [
        (DeliveredChoice(reasoning="Hm."), {}),
        (DeliveredChoice(content="Well"), {"guided_regex": "[0-9]+"}),
        (DeliveredChoice(calls=[DeliveredCall("x", "f", "{}")]), {}),
        (DeliveredChoice(content="<|im_start|>"), {}),
    ],
)
async def test_what_this_model_cannot_go_on_with_is_said_before_the_first_chunk(
    backend: NativeBackend, choice: DeliveredChoice, fields: dict[str, Any]
):
    with pytest.raises(CannotContinueError):
        await anext(run(backend, chat("Hello!", **fields), "r", Delivered({0: choice})))
    other = Delivered({0: DeliveredChoice(content="An answer")})
    with pytest.raises(CannotContinueError):
        await anext(run(backend, completion("A prompt", echo=True), "r", other))
