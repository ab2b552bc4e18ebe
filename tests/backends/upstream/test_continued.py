"""Going on with another engine's answer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from axion.errors import CannotContinueError, EngineUnavailableError
from axion.openai.delivered import Delivered
from tests.backends.fake_server import text_of
from tests.backends.upstream.harness import (
    HONOURS_NOTHING,
    TOOL,
    chat_request,
    dumped,
    take,
    text_request,
)


@pytest.mark.parametrize("tells_usage", [True, False])
@pytest.mark.parametrize(
    ("limit", "after"), [*itertools.product([None, 12, 30], [0, 1, 2, 7, 12]), (None, 13), (30, 13)]
)
@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_a_continued_answer_equals_an_uninterrupted_one(
    fake, upstream, kind: str, limit: int | None, after: int, tells_usage: bool
):
    server = fake(num_tokens=12, token_s=0.0001)
    up = upstream(server)
    if not tells_usage:
        up.dialect.tells_usage = False
    request = (chat_request if kind == "chat" else text_request)(max_tokens=limit)
    run = up.chat if kind == "chat" else up.complete
    whole, _ = await take(run(request, "1"))

    server.control(fault="close", after=after)
    delivered = Delivered()
    begun, error = await take(run(request, "1"), delivered)
    assert isinstance(error, EngineUnavailableError)
    server.control(fault="")
    rest, error = await take(run(request, "1", delivered=delivered), delivered)

    assert error is None
    if after == 13 and not tells_usage:  # nobody has said that the end was a token
        rest[-1].usage.completion_tokens += 1
        rest[-1].usage.total_tokens += 1
    chunks = [dumped(chunk) | {"created": 0} for chunk in begun + rest]
    assert chunks == [dumped(chunk) | {"created": 0} for chunk in whole]
    assert delivered.choices[0].content == text_of(0, 12)


async def test_echo_is_not_said_twice(fake, upstream):
    server = fake(fault="close", after=2, num_tokens=5)
    up = upstream(server)
    request = text_request(echo=True)
    delivered = Delivered()
    await take(up.complete(request, "1"), delivered)
    server.control(fault="")
    await take(up.complete(request, "1", delivered=delivered), delivered)
    assert delivered.choices[0].content == "Count" + text_of(0, 5)


async def test_an_open_last_message_stays_open(fake, upstream):
    server = fake(fault="close", after=2, num_tokens=6)
    up = upstream(server)
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "So: 0"}]
    open_ = {"continue_final_message": True, "add_generation_prompt": False}
    request = chat_request(messages=messages, **open_)
    delivered = Delivered()
    await take(up.chat(request, "1"), delivered)
    server.control(fault="")
    await take(up.chat(request, "1", delivered=delivered), delivered)
    assert delivered.choices[0].content == text_of(1, 6)
    assert server.stats()["body"]["messages"][-1]["content"] == "So: 0 1 2"
    assert len(server.stats()["body"]["messages"]) == 2


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {"num_reasoning": 1}),
        ({"tools": [TOOL], "tool_choice": "required"}, {}),
        ({"guided_regex": "[0-9 ]+"}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"n": 2}, {}),
        ({"presence_penalty": 1}, {}),
    ],
)
async def test_what_cannot_be_gone_on_with_is_refused_at_once(
    fake, upstream, fields: dict[str, Any], settings: dict[str, Any]
):
    server = fake(fault="close", after=1, **settings)
    up = upstream(server)
    request = chat_request(**fields)
    delivered = Delivered()
    await take(up.chat(request, "1"), delivered)
    server.control(fault="")
    chunks, error = await take(up.chat(request, "1", delivered=delivered))
    assert (chunks, type(error)) == ([], CannotContinueError)
    assert server.stats()["num_requests"] == 0


async def test_only_an_engine_that_honours_it_goes_on_with_a_chat(fake, upstream):
    server = fake(fault="close", after=1)
    up = upstream(server, capabilities=HONOURS_NOTHING)
    delivered = Delivered()
    await take(up.chat(chat_request(), "1"), delivered)
    _, error = await take(up.chat(chat_request(), "1", delivered=delivered))
    assert isinstance(error, CannotContinueError)


@pytest.mark.parametrize("fields", [{"prompt": [1, 2]}, {"echo": True, "logprobs": 1}])
async def test_only_a_text_prompt_is_gone_on_with(fake, upstream, fields: dict[str, Any]):
    server = fake(fault="close", after=1)
    up = upstream(server)
    delivered = Delivered()
    await take(up.complete(text_request(**fields), "1"), delivered)
    _, error = await take(up.complete(text_request(**fields), "1", delivered=delivered))
    assert isinstance(error, CannotContinueError)
