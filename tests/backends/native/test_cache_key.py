from __future__ import annotations

from typing import Any

import pytest

from axion.backends.native.backend import NativeBackend
from axion.backends.native.cache_key import _NOT_IN_KEY
from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import GenerationRequest
from axion.openai.structured import StructuredRequest
from tests.backends.native.harness import TOOLS, Start, chat_request
from tests.echo_engine import EchoEngine


async def cache_key(backend: NativeBackend, **fields: Any) -> bytes:
    return (await backend.prepare_chat(chat_request(**fields))).cache_key


LOOKUP = {"name": "f", "parameters": {"type": "object", "properties": {}}}


SAME_ANSWER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"user": "a"}, {"user": "b"}),
    ({"metadata": {"a": "1"}, "safety_identifier": "x"}, {"prompt_cache_key": "y"}),
    ({"service_tier": "auto", "store": False, "modalities": ["text"]}, {"priority": 4}),
    ({"n": 1, "stop": [], "logprobs": False}, {"stream": False, "temperature": 1}),
    ({"max_tokens": 5}, {"max_completion_tokens": 5}),
    ({"stop": "a"}, {"stop": ["a"]}),
    ({"logit_bias": {"1": 2, "3": 4}}, {"logit_bias": {"3": 4, "1": 2}}),
    ({"top_k": -1, "top_p": 1}, {"top_k": 0, "seed": None, "bad_words": []}),
    ({"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": 4000}),
    ({"temperature": 0, "seed": 3}, {"temperature": 0, "top_p": 0.5, "top_k": 4}),
    (
        {"content": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"content": [{"content": "Hi", "role": "user", "name": None}]},
    ),
]


OTHER_ANSWER: list[dict[str, Any]] = [
    {"content": "Hello, fox!"},
    {"temperature": 0.5},
    {"temperature": 0},
    {"top_p": 0.5},
    {"top_k": 4},
    {"min_p": 0.5},
    {"seed": 1},
    {"seed": 2},
    {"n": 2},
    {"max_tokens": 5},
    {"min_tokens": 5},
    {"stop": "a"},
    {"stop": "b"},
    {"stop_token_ids": [3]},
    {"logit_bias": {"3": 4}},
    {"presence_penalty": 1},
    {"frequency_penalty": 1},
    {"repetition_penalty": 1.1},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 2},
    {"ignore_eos": True},
    {"truncate_prompt_tokens": 3},
    {"allowed_token_ids": [3]},
    {"bad_words": ["a"]},
    {"bad_words": ["b"]},
    {"prompt_logprobs": 0},
    {"return_token_ids": True},
    {"include_stop_str_in_output": True},
    {"skip_special_tokens": False},
    {"cache_salt": "a"},
    {"cache_salt": "b"},
    {"tools": TOOLS},
    {"tools": [{"type": "function", "function": LOOKUP}]},
]


@pytest.mark.parametrize(("left", "right"), SAME_ANSWER, ids=str)
async def test_what_does_not_decide_the_answer_is_not_in_its_key(
    start: Start, left: dict[str, Any], right: dict[str, Any]
):
    backend = await start(EchoEngine(), "tools")
    assert await cache_key(backend, **left) == await cache_key(backend, **right)


async def test_all_that_decides_the_answer_is_in_its_key(start: Start):
    backend = await start(EchoEngine(), "tools")
    keys = [await cache_key(backend, **fields) for fields in ({}, *OTHER_ANSWER)]
    keys.append(await cache_key(await start(EchoEngine())))  # another model
    assert len(set(keys)) == len(keys)


def test_every_field_of_a_chat_request_is_in_the_key_or_left_out_for_a_reason():
    shown = {field for fields in OTHER_ANSWER for field in fields}
    same = {field for pair in SAME_ANSWER for fields in pair for field in fields}
    left_out = _NOT_IN_KEY - shown - same
    template = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
    # What they become, a grammar, is one of the sampling parameters, which are in the key whole.
    grammars = {"response_format", *StructuredRequest.model_fields} - set(
        GenerationRequest.model_fields
    )
    assert left_out - template - grammars == {
        "model",
        "messages",
        "stream_options",
        "prompt_cache_retention",
    }
    assert set(ChatCompletionRequest.model_fields) >= _NOT_IN_KEY
