from __future__ import annotations

import json
from typing import Any

import openai.types.chat
import pytest

from axion.errors import InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.parsing import parse_request

USER = {"role": "user", "content": "Hi."}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"default": None}}},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def parse(*messages: Any, **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": messages or [USER], **fields}
    return parse_request(ChatCompletionRequest, json.dumps(body).encode())


def fault(*messages: Any, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(*messages, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (5, "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "king", "content": "x"}, "messages[0].role"),
        ({"role": None, "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "assistant"}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content"),
        ({"role": "assistant", "refusal": "No."}, "messages[0].refusal"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages[0].audio"),
        (
            {"role": "assistant", "tool_calls": [CALL | {"id": None}]},
            "messages[0].tool_calls[0].id",
        ),
        ({"role": "tool", "content": "4"}, "messages[0].tool_call_id"),
    ],
)
def test_a_malformed_message_is_a_400_that_names_its_part(message: Any, param: str):
    error = fault(message)
    assert error.param == param
    assert error.message.startswith(param)


@pytest.mark.parametrize(("role", "shown"), [("king", '"king"'), (None, "null"), (1, "1")])
def test_an_unknown_role_is_told_the_known_ones(role: Any, shown: str):
    message = fault({"role": role, "content": "x"}).message
    assert "'developer'" in message
    assert message.endswith(f"got {shown}.")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal"])
def test_a_part_that_is_not_text_is_told_that_this_model_takes_text_only(kind: str):
    error = fault({"role": "user", "content": [{"type": kind, kind: {"url": "http://x"}}]})
    assert error.param == "messages[0].content[0].type"
    assert "this model takes text only" in error.message


@pytest.mark.parametrize("text", ["[1]", "{", "5", '{"a": 1e999}', '{"a": "\\ud800"}', "{" * 5000])
def test_the_arguments_of_an_earlier_call_must_be_an_object(text: str):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}
    error = fault({"role": "assistant", "tool_calls": [call]})
    assert error.param == "messages[0].tool_calls[0].function.arguments"


def test_too_many_messages_are_refused_unseen():
    body = b'{"model": "m", "messages": [%s]}' % b",".join([b"1"] * 10_001)
    with pytest.raises(InvalidRequestError, match="at most 10000 entries, got 10001") as caught:
        parse_request(ChatCompletionRequest, body)
    assert caught.value.param == "messages"


def test_a_tools_result_belongs_to_a_call_of_the_assistant_before_it():
    result = {"role": "tool", "content": "4", "tool_call_id": "call_1"}
    calls = {"role": "assistant", "tool_calls": [CALL, CALL | {"id": "call_2"}]}
    parse(USER, calls, result | {"tool_call_id": "call_2"}, result, USER)
    for messages in (
        [USER, result],
        [USER, calls, result | {"tool_call_id": "call_3"}],
        [USER, calls, result, {"role": "assistant", "content": "x"}, result],
    ):
        error = fault(*messages)
        assert error.param == f"messages[{len(messages) - 1}].tool_call_id"


def test_no_messages_are_refused():
    with pytest.raises(InvalidRequestError, match="messages must not be empty"):
        parse_request(ChatCompletionRequest, b'{"model": "m", "messages": []}')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]},
            "tools[0].function.strict",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"prediction": {}}, "prediction"),
        ({"reasoning_effort": "most"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"x": 2**64}}, "chat_template_kwargs"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"stream": True, "prompt_logprobs": 0}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncation_side": "right"}, "truncation_side"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], param: str):
    error = fault(**fields)
    assert error.param is not None
    assert error.param.startswith(param)
    assert param in error.message


def test_what_has_no_effect_on_the_answer_is_accepted():
    parse(
        user="u",
        metadata={"a": "b"},
        safety_identifier="s",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        service_tier="default",
        store=False,
        modalities=["text"],
        response_format={"type": "text"},
        parallel_tool_calls=False,
        tools=[],
        tool_choice="none",
        logprobs=False,
        top_logprobs=0,
    )


def test_an_answer_of_ours_can_be_sent_back():
    for content, calls in (("Hi.", None), (None, [CALL])):
        message = openai.types.chat.ChatCompletionMessage.model_validate(
            {"role": "assistant", "content": content, "refusal": None, "tool_calls": calls}
        )
        parse(USER, message.model_dump(), USER)


def test_messages_reach_the_template_as_they_were_sent():
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": "c", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
    ]
    sent = [{k: v for k, v in message.items() if v is not None} for message in messages]
    sent[4]["name"] = "add"  # what it is the result of, which some templates want
    assert parse(*messages).template_messages() == sent


def test_tools_reach_the_template_unless_they_must_not_be_called():
    assert parse(tools=[TOOL]).template_tools() == [TOOL]
    assert parse(tools=[TOOL], tool_choice="none").template_tools() is None
    assert parse(tools=[]).template_tools() is None


def test_the_newer_name_of_the_token_limit_counts():
    assert parse(max_completion_tokens=7).token_limit == 7
    assert parse(max_tokens=7, max_completion_tokens=7).token_limit == 7
    assert parse(max_tokens=7).token_limit == 7
    assert parse().token_limit is None


def test_usage_is_always_in_a_whole_answer_and_in_a_stream_on_request():
    assert parse().include_usage
    assert not parse(stream=True).include_usage
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage
