"""The server with the native backend on the echo engine, driven by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.openai.parsing import parse_request
from axion.router.registry import ModelRegistry
from axion.server import endpoint
from axion.server.body import SMALL_BODY_BYTES
from axion.settings import Settings
from axion.types import EngineConfig
from tests.echo_engine import EchoEngine
from tests.server.conftest import LiveServer

NAME = "org/echo"
WORDS = "The quick brown fox jumps over the lazy dog. "


class EchoServer(LiveServer):
    """A live server whose engine tests can look into."""

    def __init__(self, model: Path, **settings: Any) -> None:
        async def start(config: EngineConfig) -> EchoEngine:
            self.engine = EchoEngine(max_model_len=config.max_model_len, token_delay_s=0.001)
            return self.engine

        registry = ModelRegistry()
        registry.add(ModelConfig(model_name=str(model), served_name=NAME), NativeBackend(start))
        super().__init__(Settings(max_connections=300, **settings), registry)

    def __enter__(self) -> EchoServer:
        super().__enter__()
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.openai.close()
        super().__exit__(*exc_info)

    def wait_until_idle(self) -> None:
        self.wait_for(lambda: self.engine.stats.num_running == 0 == self.state.num_in_flight)


@pytest.fixture(scope="module")
def echo(tiny_model: Path) -> Iterator[EchoServer]:
    with EchoServer(tiny_model) as server:
        yield server


def chat(server: EchoServer, text: str = "hello", **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return server.openai.chat.completions.create(model=NAME, messages=messages, **options)


def test_openai_client_chat(echo: EchoServer):
    answer = chat(echo, WORDS)
    assert answer.choices[0].finish_reason == "stop"
    assert WORDS in answer.choices[0].message.content
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 10


def test_openai_client_chat_stream(echo: EchoServer):
    whole = chat(echo, WORDS).choices[0].message.content
    with chat(echo, WORDS, stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens > 10


def test_openai_client_completions(echo: EchoServer):
    create = echo.openai.completions.create
    assert create(model=NAME, prompt="hello there").choices[0].text == "hello there"
    chunks = list(create(model=NAME, prompt="hello there", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello there"


def test_openai_client_models(echo: EchoServer):
    assert next(iter(echo.openai.models.list())).id == NAME
    assert echo.openai.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        echo.openai.models.retrieve("nobody")


def test_openai_client_understands_the_errors(echo: EchoServer):
    with pytest.raises(openai.NotFoundError) as unknown:
        echo.openai.completions.create(model="nobody", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        chat(echo, WORDS * 1000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as bad:
        chat(echo, temperature=3)
    assert bad.value.param == "temperature"


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], ["x", ""]])
def test_row_8_an_empty_prompt_is_4xx_and_the_engine_lives(echo: EchoServer, prompt: Any):
    response = httpx.post(f"{echo.url}/v1/completions", json={"model": NAME, "prompt": prompt})
    assert response.status_code == 400
    assert httpx.get(f"{echo.url}/health").status_code == 200
    assert chat(echo).choices[0].message.content


def test_an_engine_that_stops_ends_streams_with_an_error(tiny_model: Path):
    with EchoServer(tiny_model) as server:
        stream = chat(server, stream=True, max_tokens=4000, extra_body={"ignore_eos": True})
        next(stream)
        asyncio.run_coroutine_threadsafe(server.engine.stop(0), server.loop)
        with pytest.raises(openai.APIError) as error:
            list(stream)
        assert error.value.code == "engine_unavailable"
        assert httpx.get(f"{server.url}/health").status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_sequences(echo: EchoServer, stream: bool):
    fields = {"ignore_eos": True, "max_tokens": 4000, "n": 3, "stream": stream}
    body = json.dumps({"model": NAME, "prompt": WORDS, **fields}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    with echo.connect() as connection:
        connection.sendall(head + body)
        echo.wait_for(lambda: echo.engine.stats.num_running == 3)
    num_steps = echo.call(lambda: echo.engine.stats.num_steps)
    echo.wait_until_idle()
    assert echo.engine.stats.num_steps - num_steps < 1000


async def test_200_streams_while_a_third_of_the_clients_leave(echo: EchoServer):
    text = WORDS * 5
    whole = chat(echo, text).choices[0].message.content
    client = openai.AsyncOpenAI(
        base_url=f"{echo.url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(limits=httpx.Limits(max_connections=None)),
    )

    async def ask(index: int) -> str | None:
        messages: Any = [{"role": "user", "content": text}]
        parts = []
        async with await client.chat.completions.create(
            model=NAME, messages=messages, stream=True
        ) as stream:
            async for chunk in stream:
                parts.append(chunk.choices[0].delta.content or "")
                if index % 3 == 0 and len(parts) > index % 40:
                    return None
        return "".join(parts)

    async with client:
        answers = await asyncio.gather(*(ask(index) for index in range(200)))
    assert answers.count(whole) == 133
    assert answers.count(None) == 67
    await asyncio.to_thread(echo.wait_until_idle)


async def test_large_bodies_do_not_hold_up_small_ones(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
):
    num_large = 40  # more than asyncio's own pool has threads
    release = threading.Event()

    def parse(model: Any, data: bytes) -> Any:
        if len(data) > SMALL_BODY_BYTES:
            release.wait(10)
        return parse_request(model, data)

    monkeypatch.setattr(endpoint, "parse_request", parse)
    body = {"model": NAME, "prompt": "a" * SMALL_BODY_BYTES}
    async with httpx.AsyncClient(base_url=f"{echo.url}/v1") as client:
        large = [
            asyncio.create_task(client.post("/completions", json=body)) for _ in range(num_large)
        ]
        while echo.state.num_in_flight < num_large:
            await asyncio.sleep(0.002)
        messages = [{"role": "user", "content": "hello"}]
        answer = await client.post("/chat/completions", json={"model": NAME, "messages": messages})
        assert answer.status_code == 200
        assert echo.state.num_in_flight == num_large
        release.set()
        assert {response.status_code for response in await asyncio.gather(*large)} == {400}
