from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axion.types import FinishReason, SequenceOutput
from tests.backends.native.harness import (
    EOS,
    ScriptedEngine,
    Start,
    chat,
    chat_stream,
    complete,
    streamed_text,
)
from tests.echo_engine import EchoEngine


@given(
    text=st.text(min_size=1, max_size=60),
    stop=st.lists(st.text("abfox, ü狐", min_size=1), max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_part_of_a_stop_string_is_ever_sent(start: Start, text: str, stop: list[str]):
    async def run() -> None:
        engine = EchoEngine()
        backend = await start(engine)
        chunks = await chat_stream(backend, text, stop=stop)
        ends = [
            (text.index(string) + len(string), -len(string)) for string in stop if string in text
        ]
        end, negative_length = min(ends, default=(len(text), 0))
        assert streamed_text(chunks) == text[: end + negative_length]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert engine.stats.num_running == 0

    asyncio.run(run())


async def test_a_stop_string_can_be_part_of_the_answer(start: Start):
    answer = await chat(
        await start(EchoEngine()), "one STOP two", stop="STOP", include_stop_str_in_output=True
    )
    assert answer.choices[0].message.content == "one STOP"


async def test_a_stop_string_does_not_count_before_min_tokens(start: Start):
    backend = await start(EchoEngine())
    answer = await complete(backend, "a.b.c.d.", stop=".", min_tokens=5)
    assert answer.choices[0].text == "a.b.c"


async def test_the_token_that_ends_a_sequence_has_no_text(start: Start):
    token = ord("A") - ord("!") + 1
    end = SequenceOutput(
        "r-0", [token, EOS], None, FinishReason.STOP, stop_token_id=EOS, num_cached_tokens=1
    )
    backend = await start(ScriptedEngine(SequenceOutput("r-0", [token]), end))
    for fields in ({}, {"skip_special_tokens": False}, {"include_stop_str_in_output": True}):
        answer = await chat(backend, **fields)
        assert answer.choices[0].message.content == "AA"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 1


async def test_a_stop_token_of_the_request_has_no_text_either(start: Start):
    backend = await start(EchoEngine())
    token = ord("c") - ord("!") + 1
    answer = await complete(backend, "abcd", stop_token_ids=[token])
    assert answer.choices[0].text == "ab"


@pytest.mark.parametrize("ask", [chat, complete])
async def test_a_choice_says_which_stop_of_the_request_ended_it(start: Start, ask: Any):
    backend = await start(EchoEngine())
    stopped = await ask(backend, "one two three", stop=["never", "two"])
    assert stopped.choices[0].stop_reason == "two"
    token_id = (await backend.tokenize(" two", add_special_tokens=False)).token_ids[0]
    stopped = await ask(backend, "one two three", stop_token_ids=[token_id])
    assert stopped.choices[0].stop_reason == token_id
    for fields in ({"stop": ["never"]}, {"max_tokens": 1}):
        ended = await ask(backend, "one two three", **fields)
        assert "stop_reason" not in ended.choices[0].model_fields_set


async def test_an_answer_cut_by_its_limit_says_so(start: Start):
    answer = await chat(await start(EchoEngine()), "abcdef", max_tokens=3)
    assert answer.choices[0].message.content == "abc"
    assert answer.choices[0].finish_reason == "length"


async def test_a_character_cut_by_the_limit_is_marked(start: Start):
    answer = await chat(await start(EchoEngine()), "a狐", max_tokens=3)
    assert answer.choices[0].message.content == "a\N{REPLACEMENT CHARACTER}"


async def test_an_answer_without_a_token_is_empty(start: Start):
    empty = SequenceOutput("", [], finish_reason=FinishReason.STOP)
    answer = await chat(await start(ScriptedEngine(empty)))
    assert answer.choices[0].message.content == ""
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
