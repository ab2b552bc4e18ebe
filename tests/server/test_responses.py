"""`/v1/responses` by OpenAI's own client, and in process where an engine has to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

import axion.demo
from axion.errors import EngineUnavailableError, InvalidRequestError, NotFoundError
from axion.server.response_store import ResponseStore, StoredResponse
from tests.server.conftest import MODEL, ScriptedBackend
from tests.server.test_app import app, assert_openai_error, client
from tests.server.test_streams import NAME, WORDS, EchoServer

__all__ = ["app", "client"]

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
DEMO = Path(axion.demo.__file__).parent / "model"
TOOL: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": None,
}
# The echo engine answers with its prompt, so that this becomes a call.
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer(DEMO) as server:
        yield server


def create(echo: EchoServer, input: Any = WORDS, **fields: Any) -> Any:
    return echo.openai.responses.create(model=NAME, input=input, **fields)


def sse_events(response: httpx.Response) -> list[Any]:
    """The events of a stream; the name of each is its type."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_openai_client_response(echo: EchoServer):
    response = create(echo, instructions="Be brief.", metadata={"job": "7"})
    assert WORDS in response.output_text
    assert "Be brief." in response.output_text
    assert response.status == "completed"
    assert response.metadata == {"job": "7"}
    assert response.usage.total_tokens > response.usage.output_tokens > 10
    TypeAdapter(Response).validate_python(response.model_dump(), strict=True)


def test_openai_client_response_stream(echo: EchoServer):
    whole = create(echo).output_text
    with create(echo, stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    for event in events:
        assert type(EVENT.validate_python(event.model_dump(warnings=False))) is type(event)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert "".join(deltas) == done.text == events[-1].response.output_text == whole


def test_openai_clients_own_accumulation_agrees(echo: EchoServer):
    with echo.openai.responses.stream(model=NAME, input=WORDS) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == "".join(texts)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_a_tool_is_an_item_of_its_own(echo: EchoServer, stream: bool):
    response = create(echo, CALL, tools=[TOOL], stream=stream)
    if stream:
        events = list(response)
        arguments = [
            event.delta
            for event in events
            if event.type == "response.function_call_arguments.delta"
        ]
        assert json.loads("".join(arguments)) == {"a": 1}
        response = events[-1].response
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    answer = create(
        echo,
        [call, {"type": "function_call_output", "call_id": call.call_id, "output": "seven"}],
        tools=[TOOL],
    )
    assert "seven" in answer.output_text


@pytest.mark.parametrize("parallel", [None, True, False])
@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_most_unless_they_may_be_parallel(
    echo: EchoServer, stream: bool, parallel: bool | None
):
    response = create(echo, CALL * 2, tools=[TOOL], parallel_tool_calls=parallel, stream=stream)
    if stream:
        *_, last = response
        response = last.response
    types = [item.type for item in response.output]
    assert types.count("function_call") == (1 if parallel is False else 2)


def test_a_conversation_goes_on_from_a_stored_response(echo: EchoServer):
    first = create(echo, "The word is plum.", instructions="Be brief.")
    second = create(echo, "Which word?", previous_response_id=first.id)
    third = create(echo, "Again?", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    for text in ("The word is plum.", "Which word?", "Again?"):
        assert text in third.output_text
    # The instructions are not carried over, only what the first answer said of them.
    assert second.output_text.count("Be brief.") == first.output_text.count("Be brief.")
    items = echo.openai.responses.input_items.list(third.id, order="asc", limit=2)
    types = [(item.type, item.role) for item in items]
    assert types == [("message", "user"), ("message", "assistant")] * 2 + [("message", "user")]


def test_a_stored_response_is_given_again_until_it_is_deleted(echo: EchoServer):
    with create(echo, stream=True) as stream:
        *_, last = stream
    responses = echo.openai.responses
    assert responses.retrieve(last.response.id) == last.response
    responses.delete(last.response.id)
    for ask in (
        lambda: responses.retrieve(last.response.id),
        lambda: responses.delete(last.response.id),
        lambda: responses.input_items.list(last.response.id),
        lambda: create(echo, previous_response_id=last.response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()


def test_store_false_keeps_nothing(echo: EchoServer):
    before = echo.call(lambda: len(echo.state.responses))
    response = create(echo, store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        echo.openai.responses.retrieve(response.id)
    assert echo.call(lambda: len(echo.state.responses)) == before


def test_a_limit_makes_a_response_incomplete(echo: EchoServer):
    response = create(echo, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"


def test_log_probabilities(echo: EchoServer):
    response = create(echo, "Hi.", top_logprobs=2)
    part = response.output[0].content[0]
    assert len(part.logprobs) == response.usage.output_tokens
    assert "Hi" in "".join(entry.token for entry in part.logprobs)
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_openai_client_understands_the_errors(echo: EchoServer):
    with pytest.raises(openai.NotFoundError) as unknown:
        echo.openai.responses.create(model="nobody", input="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as previous:
        create(echo, previous_response_id="resp_1")
    assert previous.value.code == "previous_response_not_found"
    assert previous.value.param == "previous_response_id"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as too_long:
            create(echo, WORDS * 1000, stream=stream)
        assert too_long.value.code == "context_length_exceeded"
        assert too_long.value.param == "input"
        with pytest.raises(openai.BadRequestError) as too_many:
            create(echo, max_output_tokens=10**6, stream=stream)
        assert too_many.value.param == "max_output_tokens"


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
)
def test_a_wrong_page_is_a_400(echo: EchoServer, query: str, param: str):
    id = create(echo).id
    response = httpx.get(f"{echo.url}/v1/responses/{id}/input_items?{query}")
    assert assert_openai_error(response, 400)["param"] == param


def test_the_events_of_a_stored_response_are_told_again(echo: EchoServer):
    with create(echo, stream=True) as stream:
        events = list(stream)
    id = events[-1].response.id
    retrieve = echo.openai.responses.retrieve
    assert list(retrieve(id, stream=True)) == events
    assert list(retrieve(id, stream=True, starting_after=4)) == events[5:]
    assert list(retrieve(id, stream=True, starting_after=10**6)) == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=true", "stream"),  # it has not been streamed
        ("starting_after=1", "starting_after"),
        ("include=web_search_call.results", "include"),
        ("include_obfuscation=true", "include_obfuscation"),
        ("x=1", "x"),
    ],
)
def test_what_is_not_had_of_a_stored_response_is_a_400(echo: EchoServer, query: str, param: str):
    response = httpx.get(f"{echo.url}/v1/responses/{create(echo).id}?{query}")
    assert assert_openai_error(response, 400)["param"] == param


@pytest.mark.parametrize("input", ["", [], [[]], [""], None, [{"role": "user", "content": ""}]])
def test_row_8_an_empty_input_is_answered_and_the_engine_lives(echo: EchoServer, input: Any):
    response = httpx.post(f"{echo.url}/v1/responses", json={"model": NAME, "input": input})
    assert response.status_code == (200 if input and isinstance(input[0], dict) else 400)
    assert create(echo).output_text


REQUEST = {"model": MODEL, "input": "hello"}


async def test_a_response_that_breaks_off_ends_with_response_failed(
    client: httpx.AsyncClient, backend: ScriptedBackend, app: Any
):
    backend.fail_at = (2, EngineUnavailableError("the engine stopped"))
    events = sse_events(await client.post("/v1/responses", json={**REQUEST, "stream": True}))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["message"] == "the engine stopped"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert EVENT.validate_python(events[-1]).type == "response.failed"
    assert_openai_error(await client.post("/v1/responses", json=REQUEST), 503)
    assert len(app.state.server.responses) == 0


async def test_an_error_before_the_first_event_has_its_status(
    client: httpx.AsyncClient, backend: ScriptedBackend
):
    backend.fail_at = (0, InvalidRequestError("messages[0] is odd.", param="messages[0]"))
    for stream in (False, True):
        response = await client.post("/v1/responses", json={**REQUEST, "stream": stream})
        error = assert_openai_error(response, 400)
        assert (error["param"], error["message"]) == ("input", "input is odd.")


async def test_row_21_an_unexpected_error_tells_only_the_request_id(
    client: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
):
    for at in (0, 2):
        for stream in (False, True):
            backend.fail_at = (at, RuntimeError("/secret/path ipc://socket"))
            headers = {"x-request-id": f"find-me-{at}-{stream}"}
            body = {**REQUEST, "stream": stream}
            response = await client.post("/v1/responses", json=body, headers=headers)
            assert f"find-me-{at}-{stream}" in response.text
            for leak in ("secret", "socket", "Traceback", "RuntimeError", ".py"):
                assert leak not in response.text
    assert caplog.text.count("/secret/path") == 4


class TestStore:
    def test_the_least_recently_used_is_forgotten_first(self):
        store = ResponseStore(max_responses=2)
        for id in ("a", "b"):
            store.put(id, StoredResponse(b"response", b"items"))
        store.get("a")
        store.put("c", StoredResponse(b"response", b"items"))
        assert len(store) == 2
        store.get("a")
        with pytest.raises(NotFoundError):
            store.get("b")

    def test_the_bytes_are_bounded_and_counted(self):
        store = ResponseStore(max_bytes=100)
        for i in range(50):
            store.put(str(i), StoredResponse(b"x" * (i % 40), b"y"))
            assert store.num_bytes <= 100
        for i in range(50):
            if str(i) in store._responses:
                store.delete(str(i))
        assert (store.num_bytes, len(store)) == (0, 0)

    def test_what_is_too_large_alone_is_not_kept(self):
        store = ResponseStore(max_bytes=100)
        store.put("a", StoredResponse(b"x" * 101, b""))
        assert (store.num_bytes, len(store)) == (0, 0)

    def test_an_unknown_id_is_told_shortly(self):
        with pytest.raises(NotFoundError) as caught:
            ResponseStore().get("x" * 5000)
        assert len(caught.value.message) < 400
