from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, Support
from axion.backends.remote import RemoteBackend
from axion.errors import EngineUnavailableError, ModelLoadError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import collect_chat
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.settings import Settings
from axion.types import BackendState
from tests.backends.fake_server import DEFAULTS, FakeServer

MODEL = ModelConfig(model_name="fake-model", served_name="mine")
HONOURS_ALL = Capabilities(engine="remote", honours_all=True)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def fake(server: FakeServer) -> FakeServer:
    server.control(**DEFAULTS)
    return server


def chat_request(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "Count"}]
    return ChatCompletionRequest.model_validate({"model": "mine", "messages": messages, **fields})


def remote(fake: FakeServer, **arguments: Any) -> RemoteBackend:
    given = {"model": "fake-model", "capabilities": HONOURS_ALL, **arguments}
    return RemoteBackend(f"{fake.url}/v1", **given)


async def until_state(backend: RemoteBackend, state: BackendState) -> None:
    async with asyncio.timeout(10):
        while (await backend.health()).state is not state:
            await asyncio.sleep(0.005)


async def test_it_answers_under_its_own_name(fake: FakeServer):
    backend = remote(fake)
    with pytest.raises(EngineUnavailableError, match="loading"):
        backend.chat(chat_request(), "1")
    await backend.start(MODEL)
    answer = await collect_chat(backend.chat(chat_request(max_tokens=2), "1"))
    assert (answer.model, answer.choices[0].message.content) == ("mine", " 0 1")
    assert (await backend.tokenize("a b")).token_ids == [1, 1]
    await backend.stop(1)
    assert (await backend.health()).state is BackendState.STOPPED


async def test_a_server_without_the_model_is_refused(fake: FakeServer):
    with pytest.raises(ModelLoadError, match="mine does not serve other"):
        await remote(fake, model="other").start(MODEL)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "nonsense"])
async def test_a_server_that_is_none_is_refused(url: str):
    with pytest.raises(ModelLoadError, match="remote server of mine"):
        await RemoteBackend(url).start(MODEL)


@pytest.mark.parametrize("path", ["/health", None])
async def test_its_health_is_the_servers(fake: FakeServer, path: str | None):
    backend = remote(fake, health_path=path, probe_interval_s=0.01)
    await backend.start(MODEL)
    fake.control(healthy=False)
    await until_state(backend, BackendState.DOWN)
    assert "does not answer" in (await backend.health()).detail
    fake.control(**DEFAULTS)
    await until_state(backend, BackendState.READY)
    assert (await backend.health()).detail == ""
    await backend.stop(0)


async def test_the_cache_key_is_of_what_decides_the_answer(fake: FakeServer):
    backend = remote(fake)
    await backend.start(MODEL)

    async def key(backend: RemoteBackend = backend, **fields: Any) -> bytes:
        return (await backend.prepare_chat(chat_request(**fields))).cache_key

    assert await key(user="a", stream=True, priority=3) == await key(user="b", stop=None)
    assert await key() != await key(top_p=0.5)
    assert await key(cache_salt="a") != await key(cache_salt="b")
    cutting = remote(fake, capabilities=Capabilities(engine="x"))
    await cutting.start(MODEL)
    keys = [{"stop": "a"}, {"stop": "b"}, {"stop": "b", "include_stop_str_in_output": True}, {}]
    assert len({await key(cutting, **fields) for fields in keys}) == len(keys)
    await cutting.stop(0)
    other = RemoteBackend(fake.url, model="fake-model")
    await other.start(MODEL)
    assert await key() != await key(other)
    run = (await backend.prepare_chat(chat_request(max_tokens=1))).run
    assert (await collect_chat(run("1"))).choices[0].message.content == " 0"
    await backend.stop(0)
    await other.stop(0)


@pytest.mark.parametrize(
    ("fields", "honoured", "expected"),
    [
        ({}, ["seed", "temperature"], False),
        ({"temperature": 0}, ["temperature"], True),
        ({"temperature": 0}, [], False),
        ({"seed": 5}, ["seed"], True),
        ({"seed": 0}, ["seed"], True),  # another number is sent
        ({"seed": 0}, ["seed.0"], True),
        ({"seed": 0}, [], False),
    ],
)
async def test_an_answer_is_deterministic_where_the_server_honours_what_makes_it_so(
    fake: FakeServer, fields: dict[str, Any], honoured: list[str], expected: bool
):
    features = dict.fromkeys(honoured, Support.HONOURED)
    backend = remote(fake, capabilities=Capabilities(engine="x", features=features))
    await backend.start(MODEL)
    assert (await backend.prepare_chat(chat_request(**fields))).is_deterministic is expected
    await backend.stop(0)


# Axion in front of Axion


@pytest.fixture(scope="module")
def axion_url() -> Iterator[str]:
    """A server of its own, with the bundled model."""
    process = subprocess.Popen(
        [sys.executable, "-m", "axion", "serve", "axion/demo", "--server-port", "0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        text = ""
        while "Ready" not in text:
            line = process.stdout.readline()
            assert line, text
            text += line
        match = re.search(r"http://\S+(?=/v1)", text)
        assert match is not None
        yield match[0]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
async def client(axion_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """Of an Axion that serves the other one's model as its own."""
    backend = RemoteBackend(axion_url, model="axion/demo", capabilities=HONOURS_ALL)
    registry = ModelRegistry()
    served = registry.add(MODEL, backend)
    await served.start()
    transport = httpx2.ASGITransport(create_app(Settings(), registry))
    yield openai.AsyncOpenAI(
        base_url="http://axion/v1",
        api_key="-",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(transport=transport),
    )
    await served.stop(0)


@pytest.fixture
async def direct(axion_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{axion_url}/v1", api_key="-") as client:
        yield client


GREETING = [{"role": "user", "content": "What is 2 + 2?"}]


async def test_answers_are_the_other_servers(client, direct):
    arguments: Any = {"messages": GREETING, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    through = await client.chat.completions.create(model="mine", **arguments)
    there = await direct.chat.completions.create(model="axion/demo", **arguments)
    assert through.choices == there.choices
    assert through.model == "mine"
    assert through.usage.total_tokens == there.usage.total_tokens > 0


async def test_streams_are_the_other_servers(client, direct):
    arguments: Any = {"messages": GREETING, "temperature": 0, "stream": True}
    arguments["stream_options"] = {"include_usage": True}

    async def chunks(client: openai.AsyncOpenAI, model: str) -> list[Any]:
        stream = await client.chat.completions.create(model=model, **arguments)
        return [(chunk.choices, chunk.usage and chunk.usage.total_tokens) async for chunk in stream]

    assert await chunks(client, "mine") == await chunks(direct, "axion/demo")


async def test_completions_are_the_other_servers(client, direct):
    arguments: Any = {"prompt": ["Hello", "The"], "temperature": 0, "logprobs": 2, "echo": True}
    through = await client.completions.create(model="mine", **arguments)
    there = await direct.completions.create(model="axion/demo", **arguments)
    assert through.choices == there.choices


async def test_errors_are_the_other_servers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="mine", messages=GREETING, logit_bias={"99999": 1}
        )
    assert caught.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="mine", prompt="x " * 5000)
    assert caught.value.code == "context_length_exceeded"
