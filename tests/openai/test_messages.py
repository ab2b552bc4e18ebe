from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from hypothesis import given
from hypothesis import strategies as st

from axion.errors import (
    AxionError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    QueueFullError,
    RequestTooLargeError,
)
from axion.openai.messages import CountTokensRequest, MessagesRequest, error_body
from axion.openai.parsing import parse_request
from tests.openai.test_parsing import json_values

USER = {"role": "user", "content": "Hi."}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"}


def parse(*messages: Any, **fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 9, "messages": messages or [USER], **fields}
    return parse_request(MessagesRequest, json.dumps(body).encode())


def chat(*messages: Any, **fields: Any) -> Any:
    return parse(*messages, **fields).chat()


def fault(*messages: Any, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        chat(*messages, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("params", "model"),
    [
        (message_create_params.MessageCreateParamsBase, MessagesRequest),
        (message_count_tokens_params.MessageCountTokensParams, CountTokensRequest),
    ],
)
def test_every_field_of_anthropics_client_is_known(params: Any, model: Any):
    assert not params.__annotations__.keys() - model.model_fields.keys()


def test_blocks_become_messages():
    cache = {"cache_control": {"type": "ephemeral"}}
    request = chat(
        {"role": "user", "content": [{"type": "text", "text": "1 + 2?", **cache}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I add."},
                USE,
                {**USE, "id": "toolu_2"},
            ],
        },
        {
            "role": "user",
            "content": [
                RESULT,
                {**RESULT, "tool_use_id": "toolu_2", "is_error": True},
                {"type": "text", "text": "So?"},
                {"type": "text", "text": "Say."},
            ],
        },
        system=[{"type": "text", "text": "Be brief."}],
    )
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert request.template_messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 2?"},
        {
            "role": "assistant",
            "content": "I add.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": function},
                {"id": "toolu_2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "3", "name": "add"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: 3", "name": "add"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "So?"}, {"type": "text", "text": "Say."}],
        },
    ]


def test_the_salt_reaches_the_chat():
    assert chat(cache_salt="tenant 7").cache_salt == "tenant 7"
    assert chat().cache_salt is None


def test_the_fields_of_a_chat_are_set():
    request = chat(
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        tools=[TOOL],
        tool_choice={"type": "auto"},
        metadata={"user_id": "u"},
        thinking={"type": "adaptive"},
        service_tier="auto",
    )
    assert request.token_limit == 9
    assert (request.temperature, request.top_p, request.top_k) == (0.5, 0.9, 5)
    assert request.stop == ["END"]
    assert request.tools[0].function.name == "add"
    assert request.tools[0].function.parameters == {"type": "object"}
    assert request.include_usage


def test_a_last_message_of_the_assistant_is_continued():
    request = chat(USER, {"role": "assistant", "content": "I say"})
    assert request.continue_final_message
    assert request.add_generation_prompt is False


def test_what_other_parts_of_chat_do_is_asked_of_them(monkeypatch: pytest.MonkeyPatch):
    bodies: list[Any] = []
    monkeypatch.setattr(
        "axion.openai.translation.validate_request", lambda model, body: bodies.append(body)
    )
    schema = {"type": "object"}
    chat(tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    chat(tools=[{**TOOL, "strict": True}], tool_choice={"type": "tool", "name": "add"})
    chat(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"})
    chat(thinking={"type": "disabled"})
    any_, named, output, thinking = bodies
    assert (any_["tool_choice"], any_["parallel_tool_calls"]) == ("required", False)
    assert named["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert named["tools"][0]["function"]["strict"] is True
    assert output["response_format"]["json_schema"]["schema"] == schema
    assert output["reasoning_effort"] == "low"
    assert thinking["reasoning_effort"] == "none"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": [RESULT]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": [{**USE, "input": "x"}]}]},
         "messages[0].content[0].input"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{**TOOL, "type": "bash_20250124"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "input_schema": None}]}, "tools[0].input_schema"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "auto", "name": "add"}}, "tool_choice.name"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2**63}, "top_k"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.type"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"n": 2}, "n"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_served_is_a_400_that_names_it(fields: dict[str, Any], param: str):
    body = {"model": "m", "max_tokens": 9, "messages": [USER], **fields}
    with pytest.raises(InvalidRequestError) as caught:
        parse_request(MessagesRequest, json.dumps(body).encode()).chat()
    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_what_chat_refuses_is_named_as_in_this_api(monkeypatch: pytest.MonkeyPatch):
    def refuse(model: Any, body: Any) -> Any:
        raise InvalidRequestError(f"{refused} is wrong.", param=refused)

    monkeypatch.setattr("axion.openai.translation.validate_request", refuse)
    for refused, own in {  # noqa: B007
        "messages[2].content": "messages",
        "max_completion_tokens": "max_tokens",
        "stop[1]": "stop_sequences[1]",
        "tools[3].function.parameters": "tools[3].input_schema",
        "tools[3].function.strict": "tools[3].strict",
        "tool_choice": "tool_choice",
        "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
        "reasoning_effort": "thinking",
    }.items():
        error = fault()
        assert (error.param, error.message) == (own, f"{own} is wrong.")
    refused = "reasoning_effort"
    assert fault(output_config={"effort": "low"}).param == "output_config.effort"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("x"), "invalid_request_error"),
        (MethodNotAllowedError("x"), "invalid_request_error"),
        (ModelNotFoundError("x"), "not_found_error"),
        (RequestTooLargeError("x"), "request_too_large"),
        (QueueFullError("x"), "rate_limit_error"),
        (EngineUnavailableError("x"), "overloaded_error"),
        (InternalError("x"), "api_error"),
    ],
)
def test_errors_have_anthropics_names(error: AxionError, kind: str):
    assert error_body(error) == {"type": "error", "error": {"type": kind, "message": "x"}}


blocks = st.lists(
    st.sampled_from([{"type": "text", "text": "x"}, USE, RESULT, {"type": "image"}]) | json_values,
    max_size=3,
)
turns = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]),
            "content": st.text(max_size=3) | blocks | json_values,
        }
    )
    | json_values,
    max_size=4,
)


@given(
    st.fixed_dictionaries(
        {"model": st.just("m"), "max_tokens": st.just(5) | json_values, "messages": turns},
        optional={
            name: json_values
            for name in MessagesRequest.model_fields
            if name not in {"model", "max_tokens", "messages"}
        },
    )
)
def test_any_json_is_a_request_or_a_400(body: Any):
    message = ""
    try:
        parse_request(MessagesRequest, json.dumps(body).encode()).chat()
    except InvalidRequestError as error:
        message = error.message
    assert len(message) < 500
    assert message.isprintable()
