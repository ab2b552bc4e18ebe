"""What every endpoint of a model does: admission, draining, metrics, clients that leave, bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from axion.settings import Settings
from tests.server.conftest import MODEL, ScriptedBackend
from tests.server.test_app import app, client
from tests.server.test_streams import NAME, WORDS, EchoServer

__all__ = ["app", "client"]

USER = {"role": "user", "content": WORDS}
GENERATION: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER]},
    "/v1/completions": {"prompt": WORDS},
    "/v1/responses": {"input": WORDS},
    "/v1/messages": {"messages": [USER], "max_tokens": 2000},
}
OTHERS: dict[str, dict[str, Any]] = {
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/tokenize": {"prompt": WORDS},
    "/v1/detokenize": {"tokens": [1]},
}
generation = pytest.mark.parametrize("path", GENERATION)
endpoints = pytest.mark.parametrize("path", [*GENERATION, *OTHERS])


def body(path: str, model: str = MODEL, **fields: Any) -> dict[str, Any]:
    return {"model": model, **(GENERATION | OTHERS)[path], **fields}


def assert_told_briefly(response: httpx.Response, status: int) -> None:
    assert response.status_code == status
    message = response.json()["error"]["message"]
    assert 0 < len(message) < 500
    assert message.isprintable()


@endpoints
async def test_an_unknown_model_is_404(client: httpx.AsyncClient, path: str):
    for name in ("nobody", "../..", "a\x00b", "x" * 5000):
        assert_told_briefly(await client.post(path, json=body(path, name)), 404)


@endpoints
async def test_the_model_may_be_left_out_where_one_is_served(client: httpx.AsyncClient, path: str):
    unnamed = body(path)
    del unnamed["model"]
    assert (await client.post(path, json=unnamed)).status_code == 200


@endpoints
@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"[" * 100_000, b'{"a": NaN}'])
async def test_what_is_no_json_object_is_400(client: httpx.AsyncClient, path: str, content: bytes):
    assert_told_briefly(await client.post(path, content=content), 400)


@endpoints
async def test_no_endpoint_answers_more_than_the_server_admits(
    client: httpx.AsyncClient, backend: ScriptedBackend, settings: Settings, path: str
):
    gate = asyncio.Event()
    backend.pause = gate.wait
    running = [
        asyncio.create_task(client.post("/v1/completions", json=body("/v1/completions")))
        for _ in range(settings.max_connections)
    ]
    async with asyncio.timeout(5):
        while backend.running < settings.max_connections:
            await asyncio.sleep(0)
    response = await client.post(path, json=body(path))
    assert_told_briefly(response, 429)
    assert int(response.headers["retry-after"]) > 0
    gate.set()
    assert {response.status_code for response in await asyncio.gather(*running)} == {200}
    assert (await client.post(path, json=body(path))).status_code == 200


@endpoints
async def test_a_draining_server_takes_no_more(client: httpx.AsyncClient, app: Any, path: str):
    app.state.server.draining = True
    response = await client.post(path, json=body(path))
    assert_told_briefly(response, 503)
    assert response.headers["connection"] == "close"


@generation
async def test_answers_are_measured(client: httpx.AsyncClient, path: str):
    for stream in (False, True):
        response = await client.post(path, json=body(path, stream=stream))
        assert response.status_code == 200
    text = (await client.get("/metrics")).text
    assert f'axion_requests_total{{endpoint="{path}",status="200"}} 2.0' in text
    assert f'axion_time_to_first_token_seconds_count{{model="{MODEL}"}} 2.0' in text
    assert f'axion_inter_token_latency_seconds_count{{model="{MODEL}"}} 4.0' in text
    assert "axion_requests_in_flight 0.0" in text


@generation
async def test_a_streamed_answer_says_what_the_whole_one_does(client: httpx.AsyncClient, path: str):
    whole = await client.post(path, json=body(path))
    assert "tok tok tok " in whole.text
    streamed = await client.post(path, json=body(path, stream=True))
    assert streamed.headers["cache-control"] == "no-store"
    assert streamed.text.count('"tok "') == 3


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/responses", "top_logprobs", 10**6),
        ("/v1/responses", "max_output_tokens", 2**63),
        ("/v1/responses", "n", 10**6),
        ("/v1/messages", "max_tokens", 2**63),
        ("/v1/messages", "top_k", 2**63),
        ("/v1/messages", "stop_sequences", ["x"] * 10**5),
        ("/v1/messages", "stop_sequences", ["x" * 10**5]),
        ("/v1/messages", "messages", [{"role": "user", "content": "x"}] * 20_000),
        ("/v1/responses", "input", [{"role": "user", "content": "x"}] * 20_000),
        ("/tokenize", "n", 10**6),
        ("/v1/detokenize", "tokens", [2**63]),
    ],
)
async def test_row_7_huge_counts_are_400(
    client: httpx.AsyncClient, backend: ScriptedBackend, path: str, field: str, value: Any
):
    async with asyncio.timeout(5):
        assert_told_briefly(await client.post(path, json=body(path, **{field: value})), 400)
    assert backend.seen == []


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63, 10**30])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/responses", "max_output_tokens"),
        ("/v1/responses", "top_logprobs"),
        ("/v1/messages", "max_tokens"),
        ("/v1/messages", "top_k"),
    ],
)
async def test_row_20_negative_and_huge_integers_are_400(
    client: httpx.AsyncClient, backend: ScriptedBackend, path: str, field: str, value: int
):
    assert_told_briefly(await client.post(path, json=body(path, **{field: value})), 400)
    assert backend.seen == []


@pytest.fixture(scope="module")
def echo(tiny_model: Path) -> Iterator[EchoServer]:
    with EchoServer(tiny_model) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_client_that_leaves_frees_its_sequence(echo: EchoServer, path: str, stream: bool):
    # Some 2,000 tokens of one byte each, a millisecond apart.
    fields = body(path, NAME, stream=stream) | (
        {"input": "ü" * 1000} if path == "/v1/responses" else {"messages": [
            {"role": "user", "content": "ü" * 1000}
        ]}
    )  # fmt: skip
    data = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with echo.connect() as connection:
        connection.sendall(head + data)
        echo.wait_for(lambda: echo.engine.stats.num_running == 1)
    num_steps = echo.call(lambda: echo.engine.stats.num_steps)
    echo.wait_until_idle()
    assert echo.engine.stats.num_steps - num_steps < 900
