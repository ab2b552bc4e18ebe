"""Requests that have brought other servers down, or made them fetch what a client names."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.test_responses import DEMO
from tests.server.test_streams import NAME, EchoServer


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer(DEMO) as server:
        yield server


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


SCHEMAS: dict[str, dict[str, Any]] = {
    "refers to itself": {"$ref": "#"},
    "refers in a ring": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "refers to nothing": {"$ref": "#/$defs/none"},
    "refers to an address": {"$ref": "http://127.0.0.1:1/schema.json"},
    "refers to a file": {"$ref": "file:///etc/passwd"},
    "pattern that backtracks": {"type": "string", "pattern": "^(a+)+$"},
    "pattern that repeats": {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
    "pattern that is wrong": {"type": "string", "pattern": "["},
    "type that is none": {"type": "king"},
    "type of a wrong type": {"type": 5},
    "properties of a wrong type": {"type": "object", "properties": []},
    "deep": nested(60),
    "huge bounds": {"type": "array", "minItems": 10**9},
    "many alternatives": {"anyOf": [{"const": f"{i}" * 20} for i in range(2000)]},
    "false": {"not": {}},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_row_9_a_hostile_schema_is_answered_in_time(echo: EchoServer, schema: dict[str, Any]):
    chat = {"model": NAME, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    wanted = {"name": "a", "schema": schema}
    kind = {"type": "json_schema"}
    for path, body in (
        ("chat/completions", chat | {"response_format": kind | {"json_schema": wanted}}),
        ("responses", {"model": NAME, "input": "Hi", "text": {"format": kind | wanted}}),
        ("messages", chat | {"output_config": {"format": kind | {"schema": schema}}}),
    ):
        response = httpx.post(f"{echo.url}/v1/{path}", json=body, timeout=30)
        assert response.status_code in {200, 400}, response.text
    assert httpx.get(f"{echo.url}/health/ready").status_code == 200


@pytest.mark.parametrize(
    "kind", ["chat", "chat audio", "responses", "file", "messages", "document"]
)
def test_row_16_nothing_that_a_client_names_is_fetched(echo: EchoServer, kind: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        part, path = {
            "chat": ({"type": "image_url", "image_url": {"url": url}}, "chat/completions"),
            "chat audio": ({"type": "audio_url", "audio_url": {"url": url}}, "chat/completions"),
            "responses": ({"type": "input_image", "image_url": url}, "responses"),
            "file": ({"type": "input_file", "file_url": url}, "responses"),
            "messages": ({"type": "image", "source": {"type": "url", "url": url}}, "messages"),
            "document": ({"type": "document", "source": {"type": "url", "url": url}}, "messages"),
        }[kind]
        turns = [{"role": "user", "content": [part]}]
        body: dict[str, Any] = {"input" if path == "responses" else "messages": turns}
        if path == "messages":
            body["max_tokens"] = 9
        response = httpx.post(f"{echo.url}/v1/{path}", json={"model": NAME, **body})
        assert response.status_code == 400
        assert "text" in json.dumps(response.json()["error"])
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
