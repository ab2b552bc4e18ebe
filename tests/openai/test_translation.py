"""Chats shown as Responses and as Messages: the same answer, whatever its pieces are."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import anthropic.types
import openai.types.responses
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from axion.errors import InternalError
from axion.openai.chat_answer import (
    ChatCompletionChunk,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    DeltaToolCall,
    FunctionCall,
    TokenLogprob,
)
from axion.openai.common import CompletionTokensDetails, PromptTokensDetails, Usage
from axion.openai.message_events import MessagesEvent, collect_message, message_events
from axion.openai.parsing import parse_request
from axion.openai.response_events import (
    ResponseEvent,
    ResponseStateEvent,
    ResponseStream,
    collect_response,
)
from axion.openai.response_items import load_items
from axion.openai.response_object import Response
from axion.openai.responses import ResponsesRequest

OPENAI_EVENT: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
ANTHROPIC_EVENT: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
REQUEST = parse_request(ResponsesRequest, b'{"model": "m", "input": "Hi."}')
USAGE = Usage(
    prompt_tokens=9,
    completion_tokens=4,
    total_tokens=13,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=3),
)


def chunk(delta: Delta, finish: Any = None, **choice: Any) -> ChatCompletionChunk:
    fields = {"logprobs": None, "finish_reason": finish, **choice}
    return ChatCompletionChunk(
        id="chatcmpl-1",
        object="chat.completion.chunk",
        created=1,
        model="m",
        system_fingerprint=None,
        choices=[ChunkChoice(index=0, delta=delta, **fields)],
        usage=USAGE,
    )


def call(index: int, name: str, arguments: str) -> Delta:
    function = FunctionCall(name=name, arguments=arguments)
    return Delta(
        tool_calls=[
            DeltaToolCall(index=index, id=f"call_{index}", type="function", function=function)
        ]
    )


def logprob(token: str) -> TokenLogprob:
    return TokenLogprob(token=token, logprob=-0.5, bytes=list(token.encode()), top_logprobs=[])


async def chat(*deltas: Delta, finish: str = "stop", **last: Any) -> AsyncGenerator[Any, None]:
    yield chunk(Delta(role="assistant", content=""))
    for delta in deltas:
        yield chunk(delta)
    yield chunk(Delta(), finish, **last)


async def response_events(*deltas: Delta, **end: Any) -> list[ResponseEvent]:
    stream = ResponseStream(REQUEST, "m")
    return [event async for event in stream.events(chat(*deltas, **end))]


async def messages_events(*deltas: Delta, **end: Any) -> list[MessagesEvent]:
    return [event async for event in message_events("m", chat(*deltas, **end))]


async def again(items: list[Any]) -> AsyncGenerator[Any, None]:
    for item in items:
        yield item


def as_json(event: Any) -> Any:
    return json.loads(event.to_json())


ANSWER = (
    Delta(reasoning_content="Hm"),
    Delta(reasoning_content="m."),
    Delta(content="I "),
    Delta(content="add."),
    call(0, "add", '{"a": '),
    call(0, "", "1}"),
    call(1, "sub", "{}"),
)


async def test_tokens_of_reasoning_are_counted():
    usage = USAGE.model_copy(
        update={"completion_tokens_details": CompletionTokensDetails(reasoning_tokens=2)}
    )

    async def chunks() -> AsyncGenerator[Any, None]:
        async for item in chat(*ANSWER):
            yield item
        yield chunk(Delta()).model_copy(update={"choices": [], "usage": usage})

    *_, last = [event async for event in ResponseStream(REQUEST, "m").events(chunks())]
    assert as_json(last)["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    message = await collect_message(message_events("m", chunks()))
    assert as_json(message)["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


async def test_a_response_has_openais_events_in_openais_order():
    events = await response_events(*ANSWER, finish="tool_calls")
    assert [event.type.removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in map(as_json, events):
        assert OPENAI_EVENT.validate_python(event).type == event["type"]


async def test_a_response_says_what_the_chat_said():
    response = as_json(await collect_response(again(await response_events(*ANSWER))))
    reasoning, message, add, sub = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "I add."
    assert (add["name"], add["call_id"], add["arguments"]) == ("add", "call_0", '{"a": 1}')
    assert (sub["name"], sub["call_id"], sub["arguments"]) == ("sub", "call_1", "{}")
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["status"] == "completed"
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert response["usage"]["total_tokens"] == 13
    assert openai.types.responses.Response.model_validate(response).output_text == "I add."


async def test_the_first_event_of_a_response_is_not_changed_by_later_ones():
    first, *_, last = await response_events(*ANSWER)
    assert isinstance(first, ResponseStateEvent)
    assert isinstance(last, ResponseStateEvent)
    assert first.response.status == "in_progress"
    assert first.response.output == []
    assert len(last.response.output) == 4


async def test_a_cut_off_response_is_incomplete():
    *_, item, last = await response_events(Delta(content="I "), finish="length")
    assert as_json(item)["item"]["status"] == "incomplete"
    assert as_json(last)["type"] == "response.incomplete"
    assert as_json(last)["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_log_probabilities_come_with_the_text_of_their_tokens():
    async def chunks() -> AsyncGenerator[Any, None]:
        held = ChoiceLogprobs(content=[logprob("a")], refusal=None)
        yield chunk(Delta(role="assistant", content=""), logprobs=held)
        shown = ChoiceLogprobs(content=[logprob("b")], refusal=None)
        yield chunk(Delta(content="ab"), logprobs=shown)
        yield chunk(Delta(), "stop", logprobs=ChoiceLogprobs(content=[logprob("c")], refusal=None))

    events = [as_json(event) async for event in ResponseStream(REQUEST, "m").events(chunks())]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [[entry["token"] for entry in delta["logprobs"]] for delta in deltas] == [
        ["a", "b"],
        ["c"],
    ]
    (message,) = events[-1]["response"]["output"]
    assert [entry["token"] for entry in message["content"][0]["logprobs"]] == ["a", "b", "c"]


async def test_a_message_has_anthropics_events_in_anthropics_order():
    events = await messages_events(*ANSWER, finish="tool_calls")
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert [event.type for event in events] == [
        "message_start",
        "ping",
        *(block[0], block[1], block[1], block[2]),
        *(block[0], block[1], block[1], block[2]),
        *(block[0], block[1], block[1], block[2]),
        *block,
        "message_delta",
        "message_stop",
    ]
    for event in map(as_json, events):
        if event["type"] != "ping":
            assert ANTHROPIC_EVENT.validate_python(event).type == event["type"]


async def test_a_message_says_what_the_chat_said():
    answer = as_json(
        await collect_message(again(await messages_events(*ANSWER, finish="tool_calls")))
    )
    thinking, text, add, sub = answer["content"]
    assert thinking["thinking"] == "Hmm."
    assert text["text"] == "I add."
    assert (add["id"], add["name"], add["input"]) == ("call_0", "add", {"a": 1})
    assert (sub["id"], sub["name"], sub["input"]) == ("call_1", "sub", {})
    assert answer["stop_reason"] == "tool_use"
    usage = answer["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (6, 3)
    anthropic.types.Message.model_validate(answer)


@pytest.mark.parametrize(
    ("end", "stop_reason", "stop_sequence"),
    [
        ({"finish": "stop"}, "end_turn", None),
        ({"finish": "length"}, "max_tokens", None),
        ({"finish": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish": "stop", "stop_reason": 7}, "end_turn", None),
        ({"finish": "tool_calls"}, "tool_use", None),
    ],
)
async def test_a_message_says_why_it_ended(
    end: dict[str, Any], stop_reason: str, stop_sequence: str | None
):
    answer = await collect_message(again(await messages_events(Delta(content="x"), **end)))
    assert (answer.stop_reason, answer.stop_sequence) == (stop_reason, stop_sequence)


async def test_chunks_that_stop_early_are_an_error_and_not_an_answer():
    async def chunks() -> AsyncGenerator[Any, None]:
        yield chunk(Delta(content="half an"))

    with pytest.raises(InternalError):
        await collect_response(ResponseStream(REQUEST, "m").events(chunks()))
    with pytest.raises(InternalError):
        await collect_message(message_events("m", chunks()))


text = st.text(max_size=3)
deltas = st.lists(
    st.builds(lambda text: Delta(content=text), text)
    | st.builds(lambda text: Delta(reasoning_content=text), text)
    | st.builds(
        lambda reasoning, text: Delta(reasoning_content=reasoning, content=text), text, text
    ),
    max_size=8,
)
calls = st.lists(st.lists(text, min_size=1, max_size=3), max_size=3)


@given(deltas, calls, st.sampled_from(["stop", "length", "tool_calls"]))
async def test_every_answer_becomes_whole_blocks(
    deltas: list[Delta], calls: list[list[str]], finish: str
):
    arguments = [
        call(i, "f", part) for i, parts in enumerate(calls) for part in [json.dumps(parts)]
    ]
    answer = [*deltas, *arguments]
    said = "".join(delta.content or "" for delta in deltas)
    thought = "".join(delta.reasoning_content or "" for delta in deltas)

    events = await response_events(*answer, finish=finish)
    done = [e["item"] for e in map(as_json, events) if e["type"] == "response.output_item.done"]
    response = as_json(await collect_response(again(events)))
    assert [item["id"] for item in done] == [item["id"] for item in response["output"]]
    assert done == response["output"]
    assert _texts(response["output"], "message") == said
    assert _texts(response["output"], "reasoning") == thought
    assert [i["arguments"] for i in response["output"] if i["type"] == "function_call"] == [
        delta.tool_calls[0].function.arguments for delta in arguments if delta.tool_calls
    ]

    message = as_json(await collect_message(again(await messages_events(*answer, finish=finish))))
    assert "".join(b["text"] for b in message["content"] if b["type"] == "text") == said
    thinking = [b["thinking"] for b in message["content"] if b["type"] == "thinking"]
    assert "".join(thinking) == thought


def _texts(output: list[Any], kind: str) -> str:
    return "".join(item["content"][0]["text"] for item in output if item["type"] == kind)


async def test_what_a_response_gives_can_be_sent_back_as_input():
    response: Response = await collect_response(again(await response_events(*ANSWER)))
    items = load_items(json.dumps(as_json(response)["output"]).encode())
    (message,) = REQUEST.chat(items).template_messages()
    assert message["role"] == "assistant"
    assert message["content"] == "I add."
    assert [c["function"]["name"] for c in message["tool_calls"]] == ["add", "sub"]
