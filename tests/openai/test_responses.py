from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import response_create_params

from axion.errors import InvalidRequestError
from axion.openai.parsing import parse_request
from axion.openai.response_items import dump_items, list_items, load_items
from axion.openai.responses import ResponsesRequest
from tests.openai.test_parsing import json_values

USER = {"role": "user", "content": "Hi."}
CALL = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3"}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}}


def parse(input: Any = "Hi.", **fields: Any) -> ResponsesRequest:
    body = {"model": "m", "input": input, **fields}
    return parse_request(ResponsesRequest, json.dumps(body).encode())


def chat(input: Any = "Hi.", **fields: Any) -> Any:
    request = parse(input, **fields)
    return request.chat(request.items())


def messages(input: Any, **fields: Any) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = chat(input, **fields).template_messages()
    return answer


def fault(input: Any = "Hi.", **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        chat(input, **fields)
    return caught.value


def test_every_field_of_openais_client_is_known():
    names = response_create_params.ResponseCreateParamsBase.__annotations__
    assert not names.keys() - ResponsesRequest.model_fields.keys()


def test_text_becomes_a_user_message_behind_the_instructions():
    assert messages("Hi.", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        USER,
    ]


def test_items_become_messages_and_calls_join_the_assistant_message():
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    answer = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed"}
    text = {"type": "output_text", "text": "I add.", "annotations": [], "logprobs": []}
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert messages(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "type": "message"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {**answer, "content": [text]},
            CALL,
            {**CALL, "call_id": "c2"},
            OUTPUT,
            {**OUTPUT, "call_id": "c2", "output": parts},
            CALL,
        ]
    ) == [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {
            "role": "assistant",
            "content": "I add.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3", "name": "add"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "add",
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
    ]


def test_salt_and_priority_reach_the_chat():
    request = chat(cache_salt="tenant 7", priority=-3)
    assert (request.cache_salt, request.priority) == ("tenant 7", -3)
    assert (chat().cache_salt, chat().priority) == (None, None)


def test_the_fields_of_a_chat_are_set():
    request = chat(
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=2,
        tools=[TOOL],
        tool_choice="none",
        text={"format": {"type": "text"}},
    )
    assert request.token_limit == 7
    assert (request.temperature, request.top_p, request.num_logprobs) == (0.5, 0.9, 2)
    assert request.tools[0].function.name == "add"
    assert request.tool_choice == "none"
    assert request.response_format.type == "text"
    assert request.stream
    assert request.include_usage
    allowed = {"type": "function", "name": "add"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [allowed]}
    request = chat(tools=[TOOL, {**TOOL, "name": "sub"}], tool_choice=choice)
    assert request.requires_call
    assert [tool.function.name for tool in request.callable_tools.values()] == ["add"]
    assert chat(include=["message.output_text.logprobs"]).num_logprobs == 0
    assert chat().num_logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{}]}, "input[0].role"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": 5}]}, "input[0]"),
        ({"input": [{**CALL, "arguments": "[1]"}]}, "input[0].arguments"),
        ({"input": [{**CALL, "call_id": ""}]}, "input[0].call_id"),
        ({"input": [{**OUTPUT, "output": None}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]},
         "input[0].encrypted_content"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"instructions": 5}, "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": {"x": 2**70}}]}, "tools[0].parameters"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
         "tool_choice.tools"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
         "tool_choice.tools[0].type"),
        ({"tool_choice": {"type": "mcp", "server_label": "a"}}, "tool_choice.type"),
        ({"tools": [{"type": "web_search", "filters": {}}]}, "tools[0].type"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": 2**63}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"temperature": 2.1}, "temperature"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"previous_response_id": ""}, "previous_response_id"),
        ({"messages": [USER]}, "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_served_is_a_400_that_names_it(fields: dict[str, Any], param: str):
    error = fault(**fields)
    assert error.param == param
    assert error.message.startswith(param)


def test_what_chat_refuses_is_named_as_in_this_api(monkeypatch: pytest.MonkeyPatch):
    def refuse(model: Any, body: Any) -> Any:
        raise InvalidRequestError(f"{refused} is wrong.", param=refused)

    monkeypatch.setattr("axion.openai.translation.validate_request", refuse)
    for refused, own in {  # noqa: B007
        "messages[2].content": "input",
        "max_completion_tokens": "max_output_tokens",
        "response_format.json_schema.schema": "text.format.schema",
        "response_format.type": "text.format.type",
        "reasoning_effort": "reasoning.effort",
        "verbosity": "text.verbosity",
        "tools[3].function.strict": "tools[3].strict",
        "tool_choice": "tool_choice",
        "tool_choice.function.name": "tool_choice.name",
    }.items():
        error = fault()
        assert (error.param, error.message) == (own, f"{own} is wrong.")


def test_structured_output_is_asked_of_chat(monkeypatch: pytest.MonkeyPatch):
    bodies: list[Any] = []
    monkeypatch.setattr(
        "axion.openai.translation.validate_request", lambda model, body: bodies.append(body)
    )
    schema = {"type": "object"}
    chat(
        text={"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}},
        tools=[{**TOOL, "strict": True}],
        tool_choice={"type": "function", "name": "add"},
        reasoning={"effort": "low"},
    )
    (body,) = bodies
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": schema, "strict": True},
    }
    assert body["tools"][0]["function"]["strict"] is True
    assert body["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert body["reasoning_effort"] == "low"


def test_items_survive_the_store_and_are_listed_with_ids_and_parts():
    items = parse([USER, {"role": "assistant", "content": "Yes?"}, CALL, OUTPUT]).items()
    assert load_items(dump_items(items)) == items
    listed = list_items(items)
    assert [item["type"] for item in listed] == [
        "message",
        "message",
        "function_call",
        "function_call_output",
    ]
    assert len({item["id"] for item in listed}) == 4
    assert listed[0]["content"] == [{"type": "input_text", "text": "Hi."}]
    assert listed[1]["content"] == [{"type": "output_text", "text": "Yes?", "annotations": []}]


items = st.lists(
    json_values
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(["message", "function_call", "reasoning", "x"]),
            "role": st.sampled_from(["user", "assistant", "system"]),
            "content": json_values,
        }
    )
    | st.sampled_from([USER, CALL, OUTPUT]),
    max_size=4,
)


@given(
    st.fixed_dictionaries(
        {"model": st.just("m"), "input": items | json_values},
        optional={
            name: json_values
            for name in ResponsesRequest.model_fields
            if name not in {"model", "input"}
        },
    )
    | st.dictionaries(st.sampled_from(sorted(ResponsesRequest.model_fields)), json_values)
)
def test_any_json_is_a_request_or_a_400(body: Any):
    message = ""
    try:
        request = parse_request(ResponsesRequest, json.dumps(body).encode())
        items = request.items()
        assert load_items(dump_items(items)) == items
        request.chat(items)
    except InvalidRequestError as error:
        message = error.message
    assert len(message) < 500
    assert message.isprintable()
