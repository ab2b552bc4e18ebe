from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai.types
import pytest

from axion.errors import InternalError, InvalidRequestError
from axion.openai.common import PromptTokensDetails, Usage
from axion.openai.completions import (
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
    Logprobs,
    collect_completion,
)
from axion.openai.parsing import parse_request


def parse(prompt: Any = "Hi.", **fields: Any) -> CompletionRequest:
    body = {"model": "m", "prompt": prompt, **fields}
    return parse_request(CompletionRequest, json.dumps(body).encode())


def fault(prompt: Any = "Hi.", **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(prompt, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, prompts: Any):
    assert parse(prompt).prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([""], "prompt[0]"),
        (["a", ""], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        (None, "prompt"),
        (5, "prompt"),
        ({}, "prompt"),
        (["a", 1], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([[1], 2], "prompt[1]"),
        ([-1], "prompt[0]"),
        ([2**63], "prompt[0]"),
        ([[1, -1]], "prompt[0][1]"),
        ([True], "prompt[0]"),
        ([1.0], "prompt[0]"),
        ([None], "prompt[0]"),
        (["a"] * 129, "prompt"),
        ([[1]] * 129, "prompt"),
    ],
)
def test_an_empty_or_malformed_prompt_is_a_400(prompt: Any, param: str):
    error = fault(prompt)
    assert error.param == param
    assert error.message.startswith(param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": ["a"] * 2, "n": 65}, "n"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str):
    assert fault(**fields).param == param


def test_best_of_may_be_n():
    assert parse(best_of=3, n=3).num_choices == 3
    assert parse(best_of=1).num_choices == 1


SHARED: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": None,
}


def chunk(index: int, text: str, **fields: Any) -> CompletionChunk:
    fields = {"logprobs": None, "finish_reason": None} | fields
    choice = CompletionChunkChoice(index=index, text=text, **fields)
    return CompletionChunk(**SHARED, choices=[choice])


async def stream(*chunks: CompletionChunk) -> AsyncIterator[CompletionChunk]:
    for each in chunks:
        yield each


async def test_choices_are_collected_each_on_its_own():
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=2,
        total_tokens=3,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    )
    logprobs = [
        Logprobs(tokens=[t], token_logprobs=[-1.0], top_logprobs=[{t: -1.0}], text_offset=[i])
        for i, t in enumerate("ab")
    ]
    answer = await collect_completion(
        stream(
            chunk(1, "x"),
            chunk(0, "a", logprobs=logprobs[0]),
            chunk(0, "b", logprobs=logprobs[1]),
            chunk(0, "", finish_reason="stop"),
            chunk(1, "", finish_reason="length"),
            CompletionChunk(**SHARED, choices=[], usage=usage),
        )
    )
    official = openai.types.Completion.model_validate(json.loads(answer.to_json()))
    first, second = official.choices
    assert (first.text, first.finish_reason, second.text) == ("ab", "stop", "x")
    assert first.logprobs is not None
    assert first.logprobs.tokens == ["a", "b"]
    assert first.logprobs.text_offset == [0, 1]
    assert second.logprobs is None


async def test_log_probabilities_of_an_empty_answer_are_empty_lists():
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=1,
        total_tokens=2,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    )
    ended = chunk(0, "", finish_reason="stop")
    last = CompletionChunk(**SHARED, choices=[], usage=usage)
    for asked, expected in (
        (True, Logprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])),
        (False, None),
    ):
        answer = await collect_completion(stream(ended, last), with_logprobs=asked)
        assert answer.choices[0].logprobs == expected


async def test_a_stream_that_ends_early_is_no_answer():
    with pytest.raises(InternalError):
        await collect_completion(stream(chunk(0, "a")))
