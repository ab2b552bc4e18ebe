from __future__ import annotations

from typing import Any

import pytest

from axion.errors import ContextLengthExceededError, InvalidRequestError
from tests.backends.native.harness import (
    RecordingEngine,
    Start,
    chat,
    chat_request,
    complete,
    completion_request,
    fault,
)
from tests.echo_engine import EchoEngine


async def test_seeds_of_choices_stay_in_range(start: Start):
    engine = RecordingEngine()
    await chat(await start(engine), n=2, seed=2**63 - 1)
    assert [params.seed for params in engine.params] == [2**63 - 1, -(2**63)]


async def test_completions_have_16_tokens_unless_more_are_asked_for(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    await complete(backend, "a" * 20, max_tokens=None)
    await chat(backend, "a" * 20)
    assert [params.max_tokens for params in engine.params] == [16, 4096 - 20]


@pytest.mark.parametrize("num_tokens", [10, 11, 5000])
async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(
    start: Start, num_tokens: int
):
    backend = await start(EchoEngine(max_model_len=10))
    for chunks, param in (
        (backend.chat(chat_request("a" * num_tokens), "r"), "messages"),
        (backend.complete(completion_request([5] * num_tokens), "r"), "prompt"),
    ):
        error = await fault(chunks)
        assert isinstance(error, ContextLengthExceededError)
        assert (error.code, error.param) == ("context_length_exceeded", param)
        assert "10 tokens" in error.message
        assert str(num_tokens) in error.message


async def test_a_limit_that_does_not_fit_is_refused_with_all_numbers(start: Start):
    backend = await start(EchoEngine(max_model_len=10))
    for name in ("max_tokens", "max_completion_tokens"):
        error = await fault(backend.chat(chat_request("abcd", **{name: 7}), "r"))
        assert error.code == "context_length_exceeded"
        assert error.param == name
        for number in ("10", "11", "4", "7", "6"):
            assert number in error.message
    answer = await chat(backend, "abcd", max_tokens=6)
    assert answer.choices[0].message.content == "abcd"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [99]}, "prompt"),
        ({"logit_bias": {"99": 1}}, "logit_bias"),
        ({"stop_token_ids": [99]}, "stop_token_ids"),
        ({"min_tokens": 20}, "min_tokens"),
    ],
)
async def test_what_the_engine_cannot_take_is_a_400(
    start: Start, fields: dict[str, Any], param: str
):
    engine = EchoEngine(vocab_size=99)
    request = completion_request(**{"prompt": [1]} | fields)
    error = await fault((await start(engine)).complete(request, "r"))
    assert isinstance(error, InvalidRequestError)
    assert error.param == param
    assert engine.stats.num_prompt_tokens == 0
