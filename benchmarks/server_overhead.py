"""The server's own time, without a model: for each request and for each streamed token.

    python benchmarks/server_overhead.py [--model axion/demo] [--streams 100] [--tokens 200]

The server runs in a process of its own with the echo engine, which gives every stream one token a
step; this process asks over loopback. A token's time is from the engine's giving it out to its
arrival here, both on CLOCK_MONOTONIC: detokenising, encoding, HTTP and the loopback are in it, and
so is the wait behind the other streams of its step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import psutil
import uvloop

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.observability.logging import configure_logging
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.server.listener import bind
from axion.server.runner import run
from axion.settings import Settings
from axion.types import EngineConfig, SamplingParams, SequenceOutput
from tests.echo_engine import EchoEngine

NAME = "echo"
PROMPT = "The quick brown fox jumps over the lazy dog."


class ClockedEngine(EchoEngine):
    """Remembers when it gave out each token of each sequence."""

    emitted: dict[str, list[float]]

    def _outputs(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams, room: int
    ) -> Iterator[SequenceOutput]:
        times = self.emitted.setdefault(request_id, [])
        for output in super()._outputs(request_id, prompt_token_ids, params, room):
            times.append(time.monotonic())
            yield output


def serve(pipe: Connection, model: str, max_connections: int, step_s: float) -> None:
    """The server's process: sends its port, and at the end when each token was given out."""
    configure_logging("warning")
    emitted: dict[str, list[float]] = {}

    async def start(config: EngineConfig) -> ClockedEngine:
        engine = ClockedEngine(max_model_len=config.max_model_len, token_delay_s=step_s)
        engine.emitted = emitted
        return engine

    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=model, served_name=NAME), NativeBackend(start))
    settings = Settings(max_connections=max_connections)
    listener = bind("127.0.0.1", 0)
    app = create_app(settings, registry)
    ready = run(app, listener, on_ready=lambda: pipe.send(listener.getsockname()[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ready)
    pipe.send(emitted)


class Client(asyncio.Protocol):
    """One keep-alive connection that notes when each event of an answer arrives."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.arrivals: list[float] = []
        self._position = 0
        self.transport: asyncio.Transport
        self.done: asyncio.Future[None]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.data += data
        while (found := self.data.find(b"\ndata: ", self._position)) >= 0:
            self._position = found + 1
            self.arrivals.append(now)
        if self.data.endswith((b"0\r\n\r\n", b"}]}", b"}}}")):
            self.done.set_result(None)

    async def post(self, body: dict[str, Any], path: str = "/v1/completions") -> bytes:
        self.data.clear()
        self.arrivals.clear()
        self._position = 0
        self.done = asyncio.get_running_loop().create_future()
        content = json.dumps(body).encode()
        self.transport.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % (path.encode(), len(content)) + content
        )
        await self.done
        return bytes(self.data)


def request(num_tokens: int, *, stream: bool) -> dict[str, Any]:
    return {
        "model": NAME,
        "prompt": PROMPT,
        "add_special_tokens": False,  # each token is a piece of text, so each is an event
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


async def connect(port: int) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, "127.0.0.1", port)
    return client


async def time_requests(port: int, num_requests: int) -> list[float]:
    """Seconds of each of `num_requests` one-token answers, one after the other."""
    client = await connect(port)
    times = []
    for _ in range(num_requests):
        start = time.monotonic()
        await client.post(request(1, stream=False))
        times.append(time.monotonic() - start)
    client.transport.close()
    return times


async def time_streams(port: int, num_streams: int, num_tokens: int) -> dict[str, list[float]]:
    """When each token of each of the concurrent streams arrived, by the engine's request id."""
    clients = [await connect(port) for _ in range(num_streams)]
    answers = await asyncio.gather(
        *(client.post(request(num_tokens, stream=True)) for client in clients)
    )
    arrivals = {}
    for client, answer in zip(clients, answers, strict=True):
        start = answer.index(b'"cmpl-') + len(b'"cmpl-')
        request_id = answer[start : answer.index(b'"', start)].decode()
        arrivals[request_id] = client.arrivals[:-2]  # then come the finish reason and [DONE]
        client.transport.close()
    return arrivals


def latencies(
    emitted: dict[str, list[float]], arrivals: dict[str, list[float]], num_tokens: int
) -> list[float]:
    """Seconds from the engine to here, of every token."""
    by_request = {name.partition("-")[0]: times for name, times in emitted.items()}
    result = []
    for request_id, arrived in arrivals.items():
        left = by_request[request_id]
        assert len(left) == len(arrived) == num_tokens, (len(left), len(arrived))
        result += [b - a for a, b in zip(left, arrived, strict=True)]
    return result


def show(name: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=1000)
    print(f"{name:44} p50 {1e3 * cuts[499]:7.2f} ms   p99 {1e3 * cuts[989]:7.2f} ms")


def measure(arguments: argparse.Namespace, step_s: float) -> tuple[list[float], ...]:
    """Request times, token times, server CPU seconds a token, server memory in bytes."""
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(there, arguments.model, arguments.streams, step_s))
    server.start()
    try:
        port = here.recv()
        process = psutil.Process(server.pid)
        memory = process.memory_info().rss

        async def ask() -> tuple[list[float], dict[str, list[float]], float]:
            requests = await time_requests(port, arguments.requests)
            await time_streams(port, arguments.streams, 5)  # warm
            before = sum(process.cpu_times()[:2])
            arrivals = await time_streams(port, arguments.streams, arguments.tokens)
            return requests, arrivals, sum(process.cpu_times()[:2]) - before

        requests, arrivals, cpu = uvloop.run(ask())
        server.terminate()
        tokens = latencies(here.recv(), arrivals, arguments.tokens)
    finally:
        server.terminate()
        server.join()
    return requests, tokens, [cpu / len(tokens)], [memory]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="axion/demo", help="whose tokenizer and template to use")
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--step-ms", type=float, default=30.0, help="time of one engine step")
    arguments = parser.parse_args()

    requests, *_ = measure(arguments, step_s=0)
    _, tokens, (cpu,), (memory,) = measure(arguments, step_s=arguments.step_ms / 1e3)
    show("a request of one token, alone", requests)
    show(f"a streamed token, {arguments.streams} streams at once", tokens)
    print(f"{'CPU of the API process for a streamed token':44} {1e6 * cpu:11.1f} µs")
    print(f"{'memory of the API process':44} {memory / 2**20:11.1f} MiB")


if __name__ == "__main__":
    main()
