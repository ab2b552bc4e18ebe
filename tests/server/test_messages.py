"""`/v1/messages` by Anthropic's own client, and in process where an engine has to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message
from pydantic import TypeAdapter

from axion.errors import EngineUnavailableError, InvalidRequestError
from tests.server.conftest import MODEL, ScriptedBackend
from tests.server.test_app import app, client
from tests.server.test_responses import CALL, DEMO, sse_events
from tests.server.test_streams import NAME, WORDS, EchoServer

__all__ = ["app", "client"]

TOOL: Any = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}


class AnthropicServer(EchoServer):
    def __enter__(self) -> AnthropicServer:
        super().__enter__()
        self.anthropic = anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.anthropic.close()
        super().__exit__(*exc_info)


@pytest.fixture(scope="module")
def echo() -> Iterator[AnthropicServer]:
    with AnthropicServer(DEMO) as server:
        yield server


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def create(echo: AnthropicServer, *messages: Any, **fields: Any) -> Any:
    fields = {"max_tokens": 1000, "model": NAME, **fields}
    return echo.anthropic.messages.create(messages=list(messages) or [user(WORDS)], **fields)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def assert_anthropic_error(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert content.keys() == {"type", "error"}
    assert content["type"] == "error"
    assert content["error"].keys() == {"type", "message"}
    assert content["error"]["type"] == kind
    message: str = content["error"]["message"]
    return message


def test_anthropic_client_message(echo: AnthropicServer):
    message = create(echo, system="Be brief.")
    assert WORDS in text_of(message)
    assert "Be brief." in text_of(message)
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 10
    TypeAdapter(Message).validate_python(message.model_dump(), strict=True)


def test_anthropic_client_stream(echo: AnthropicServer):
    whole = create(echo)
    with echo.anthropic.messages.stream(
        model=NAME, max_tokens=1000, messages=[user(WORDS)]
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(final) == text_of(whole)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    raw = list(create(echo, stream=True))
    assert raw[0].type == "message_start"
    assert raw[0].message.usage.input_tokens == whole.usage.input_tokens
    assert raw[-1].type == "message_stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_use_of_a_tool_and_its_result(echo: AnthropicServer, stream: bool):
    if stream:
        with echo.anthropic.messages.stream(
            model=NAME, max_tokens=1000, messages=[user(CALL)], tools=[TOOL]
        ) as events:
            partial = [event.partial_json for event in events if event.type == "input_json"]
            message = events.get_final_message()
        assert json.loads("".join(partial)) == {"a": 1}
    else:
        message = create(echo, user(CALL), tools=[TOOL])
    assert message.stop_reason == "tool_use"
    (use,) = [block for block in message.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("add", {"a": 1})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "seven"}
    answer = create(
        echo,
        user("1 + 6?"),
        {"role": "assistant", "content": [use.model_dump(exclude_none=True)]},
        user([result]),
        tools=[TOOL],
        tool_choice={"type": "none"},
    )
    assert "seven" in text_of(answer)


@pytest.mark.parametrize("disable", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_one_use_at_most_where_parallel_ones_are_disabled(
    echo: AnthropicServer, stream: bool, disable: bool
):
    choice = {"type": "auto", "disable_parallel_tool_use": disable}
    fields: Any = {"tools": [TOOL], "tool_choice": choice}
    if stream:
        with echo.anthropic.messages.stream(
            model=NAME, max_tokens=1000, messages=[user(CALL * 2)], **fields
        ) as events:
            message = events.get_final_message()
    else:
        message = create(echo, user(CALL * 2), **fields)
    assert [block.type for block in message.content].count("tool_use") == 2 - disable


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_is_named(echo: AnthropicServer, stream: bool):
    fields = {"stop_sequences": ["never", "jumps"], "stream": stream}
    if stream:
        events = list(create(echo, **fields))
        (delta,) = [event.delta for event in events if event.type == "message_delta"]
    else:
        delta = create(echo, **fields)
        assert text_of(delta).endswith("The quick brown fox ")
    assert (delta.stop_reason, delta.stop_sequence) == ("stop_sequence", "jumps")


def test_a_limit_ends_a_message(echo: AnthropicServer):
    assert create(echo, max_tokens=3).stop_reason == "max_tokens"


def test_an_answer_that_is_begun_goes_on(echo: AnthropicServer):
    message = create(echo, user("Hi."), {"role": "assistant", "content": "The word is"})
    assert text_of(message).endswith("The word is")


def test_count_tokens_is_what_a_message_takes(echo: AnthropicServer):
    messages: Any = [user(WORDS)]
    count = echo.anthropic.messages.count_tokens
    counted = count(model=NAME, messages=messages, system="Be brief.", tools=[TOOL]).input_tokens
    usage = create(echo, *messages, system="Be brief.", tools=[TOOL]).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens
    assert counted > count(model=NAME, messages=messages).input_tokens


def test_anthropic_client_understands_the_errors(echo: AnthropicServer):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        create(echo, model="nobody")
    assert unknown.value.body["error"]["type"] == "not_found_error"
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as bad:
            create(echo, user(WORDS * 1000), stream=stream)
        assert bad.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError) as image:
        source = {"type": "base64", "media_type": "image/png", "data": ""}
        create(echo, user([{"type": "image", "source": source}]))
    assert "text only" in str(image.value)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_every_error_of_these_routes_has_anthropics_shape(echo: AnthropicServer, path: str):
    url = echo.url + path
    assert_anthropic_error(httpx.get(url), 405, "invalid_request_error")
    assert_anthropic_error(httpx.post(url, content=b"{"), 400, "invalid_request_error")
    form = {"content-type": "multipart/form-data"}
    assert_anthropic_error(httpx.post(url, headers=form), 415, "invalid_request_error")
    head = b"POST %s HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n" % path.encode()
    with echo.connect() as connection:
        connection.sendall(head)
        answer = b""
        while not answer.endswith(b"}}"):
            answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 413 " in head
    assert json.loads(body)["error"]["type"] == "request_too_large"


REQUEST = {"model": MODEL, "max_tokens": 9, "messages": [user("hello")]}


@pytest.mark.parametrize("messages", ["", [], [[]], [{}], [user([])], None])
async def test_row_8_an_empty_prompt_is_400(client: httpx.AsyncClient, messages: Any):
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        body = {**REQUEST, "messages": messages}
        if path.endswith("count_tokens"):
            del body["max_tokens"]
        assert_anthropic_error(await client.post(path, json=body), 400, "invalid_request_error")


async def test_a_message_that_breaks_off_ends_with_an_error_event(
    client: httpx.AsyncClient, backend: ScriptedBackend
):
    backend.fail_at = (2, EngineUnavailableError("the engine stopped"))
    events = sse_events(await client.post("/v1/messages", json={**REQUEST, "stream": True}))
    error = {"type": "overloaded_error", "message": "the engine stopped"}
    assert events[-1] == {"type": "error", "error": error}
    response = await client.post("/v1/messages", json=REQUEST)
    assert_anthropic_error(response, 503, "overloaded_error")
    assert int(response.headers["retry-after"]) > 0


async def test_an_error_before_the_first_event_has_its_status(
    client: httpx.AsyncClient, backend: ScriptedBackend
):
    backend.fail_at = (0, InvalidRequestError("stop is odd.", param="stop"))
    for stream in (False, True):
        response = await client.post("/v1/messages", json={**REQUEST, "stream": stream})
        message = assert_anthropic_error(response, 400, "invalid_request_error")
        assert message == "stop_sequences is odd."


async def test_row_21_an_unexpected_error_tells_only_the_request_id(
    client: httpx.AsyncClient, backend: ScriptedBackend
):
    for at in (0, 2):
        for stream in (False, True):
            backend.fail_at = (at, RuntimeError("/secret/path ipc://socket"))
            headers = {"x-request-id": f"find-me-{at}-{stream}"}
            body = {**REQUEST, "stream": stream}
            response = await client.post("/v1/messages", json=body, headers=headers)
            assert f"find-me-{at}-{stream}" in response.text
            for leak in ("secret", "socket", "Traceback", "RuntimeError", ".py"):
                assert leak not in response.text


async def test_any_version_header_is_taken(client: httpx.AsyncClient):
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x", "x-api-key": "none"}
    response = await client.post("/v1/messages?beta=true", json=REQUEST, headers=headers)
    assert response.status_code == 200
