"""A spawned engine is killed under its streams: the native engine goes on, unnoticed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

import axion
from axion.text.tokenizer import load_tokenizer
from tests.e2e.stand_in import write_command
from tests.e2e.test_server import MODEL, Server, start, until

NUM_STREAMS = 10
NUM_TOKENS = 60
DEMO = Path(axion.__file__).parent / "demo" / "model"
# Text without the tokens that have none, which cannot be told from it.
BIAS = {str(id): -100 for id in load_tokenizer(DEMO).special_token_ids}


def engines(server: Server) -> dict[str, str]:
    (model,) = httpx.get(f"{server.url}/health").json()["models"]
    return {engine["engine"]: engine["state"] for engine in model["health"]["engines"]}


def upstream(server: Server) -> psutil.Process:
    """The process that stands in for vLLM."""
    below = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [process for process in below if process.cmdline()[1:] == ["-m", "axion"]]
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With both engines ready."""
    # In bfloat16 a token may depend on which sequences are in its batch, without any failure.
    server = start(
        tmp_path,
        AXION_BACKENDS="vllm,native",
        AXION_VLLM_COMMAND=str(write_command(tmp_path)),
        DTYPE="float32",
        CPU_THREADS="1",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        CONCURRENT_REQUESTS=str(NUM_STREAMS),
    )
    try:
        until(lambda: set(engines(server).values()) == {"ready"})
        yield server
    finally:
        status = server.stop()
    assert status == 0


class Streamed(NamedTuple):
    engine: str
    text: str
    roles: int
    finish_reasons: list[str]
    usage: Any


def request(i: int) -> tuple[str, dict[str, Any]]:
    """A chat or a text completion."""
    fields = {"model": MODEL, "max_tokens": NUM_TOKENS, "temperature": 0, "logit_bias": BIAS}
    prompt = f"What is {i} + {2 * i}?"
    if i % 2:
        return "completions", {**fields, "prompt": prompt}
    messages = [{"role": "user", "content": prompt}]
    return "chat/completions", {**fields, "messages": messages}


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/", timeout=120) as opened:
        yield opened


async def stream(
    opened: httpx.AsyncClient, i: int, on_text: Callable[[int], None] = lambda i: None
) -> Streamed:
    path, body = request(i)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    text, roles, reasons, usage, ids = "", 0, [], None, set()
    done = False
    async with opened.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            assert not done
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line.removeprefix("data: "))
            ids.add((chunk["id"], chunk["created"], chunk["model"]))
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta = choice.get("delta", {})
                roles += "role" in delta
                text += choice.get("text") or delta.get("content") or ""
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
            if text:
                on_text(i)
    assert done
    assert len(ids) == 1
    return Streamed(response.headers["x-axion-backend"], text, roles, reasons, usage)


def counts(answer: Streamed) -> tuple[int, int, int]:
    """Without those of the prefix cache, which each engine has its own of."""
    usage = answer.usage
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


async def test_no_client_notices_that_an_engine_is_killed(server: Server):
    process = upstream(server)
    async with client(server) as opened, asyncio.timeout(100):
        expected = await asyncio.gather(*(stream(opened, i) for i in range(NUM_STREAMS)))
        assert {answer.engine for answer in expected} == {"vllm"}
        begun: set[int] = set()
        all_begun = asyncio.Event()

        def on_text(i: int) -> None:
            begun.add(i)
            if len(begun) == NUM_STREAMS:
                all_begun.set()

        streams = [asyncio.create_task(stream(opened, i, on_text)) for i in range(NUM_STREAMS)]
        await all_begun.wait()
        process.suspend()
        assert not any(task.done() for task in streams)
        # One more, which has nothing of its answer yet.
        late = asyncio.create_task(stream(opened, 0))
        in_flight = f"axion_requests_in_flight {NUM_STREAMS + 1}.0"
        while in_flight not in (await opened.get(f"{server.url}/metrics")).text:
            await asyncio.sleep(0.01)
        process.kill()
        answers = await asyncio.gather(*streams)
        retried = await late
        after = await stream(opened, 0)
    for i, (answer, uninterrupted) in enumerate(zip(answers, expected, strict=True)):
        assert answer == uninterrupted._replace(usage=answer.usage)
        assert counts(answer) == counts(uninterrupted)
        assert answer.roles == (i % 2 == 0)
        assert answer.finish_reasons == ["length"]
        assert answer.usage["completion_tokens"] == NUM_TOKENS
    for answer in (retried, after):
        assert answer == expected[0]._replace(engine="native", usage=answer.usage)
        assert counts(answer) == counts(expected[0])
    metrics = httpx.get(f"{server.url}/metrics").text
    for when, number in (("during", NUM_STREAMS), ("before", 1)):
        labels = f'engine="vllm",model="{MODEL}",when="{when}"'
        assert f"axion_failovers_total{{{labels}}} {number}.0" in metrics
