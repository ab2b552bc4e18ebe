"""What Axion adds in front of an engine: the same streams directly and through it, in one run.

    python benchmarks/proxy.py [--streams 1 10 100] [--tokens 100] [--step-ms 30] [--burst]

Three processes: an engine that speaks the OpenAI API and writes the time into each token's text,
Axion with that engine as its upstream, and this one, which asks. A token's time is from the
engine's writing it to its arrival here, both on CLOCK_MONOTONIC; so what Axion adds is the
difference of the two columns. Each stream gets a token a step. The streams' steps are spread
evenly; with --burst all streams get theirs at the same moment, so that most of a token's time is
spent behind other tokens. Rounds alternate between the two ways.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import re
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import psutil
import uvloop
from server_overhead import Client, connect

from axion.backends.base import ModelConfig
from axion.backends.remote import RemoteBackend
from axion.observability.logging import configure_logging
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.server.listener import bind
from axion.server.runner import run
from axion.settings import Settings

NAME = "model"
PATH = "/v1/chat/completions"
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CHUNK = (
    '{"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"model",'
    '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s,"token_ids":null}]%s}'
)
USAGE = ',"usage":{"prompt_tokens":9,"total_tokens":%d,"completion_tokens":%d}'


class Engine(asyncio.Protocol):
    """One connection to the engine's process: answers as vLLM does, with as little work."""

    def __init__(self, step_s: float, running: set[Engine] | None) -> None:
        self._step_s = step_s
        self._running = running
        self._data = b""
        self._num_tokens = self._num_sent = 0
        self._usage = self._usage_so_far = False
        self._next = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._num_sent = self._num_tokens

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, _, body = self._data.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if len(body) < (int(found[1]) if found else 0):
            return
        self._data = b""
        if head.startswith(b"GET"):
            answer = json.dumps({"data": [{"id": NAME}]}).encode()
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer)
            self.transport.write(head + answer)
            return
        request = json.loads(body)
        options = request.get("stream_options") or {}
        self._usage = options.get("include_usage", False)
        self._usage_so_far = options.get("continuous_usage_stats", False)
        self._num_tokens, self._num_sent = request["max_tokens"], 0
        self.transport.write(HEAD + self._event('{"role":"assistant","content":""}'))
        if self._running is not None:
            self._running.add(self)
            return
        loop = asyncio.get_running_loop()
        self._next = loop.time() + self._step_s
        loop.call_at(self._next, self._tick)

    def _tick(self) -> None:
        if self.send_token():
            self._next += self._step_s
            asyncio.get_running_loop().call_at(self._next, self._tick)

    def send_token(self) -> bool:
        """Send the next one; False when it was the last."""
        if self._num_sent == self._num_tokens:
            return False
        self._num_sent += 1
        is_last = self._num_sent == self._num_tokens
        delta = f'{{"content":" {time.monotonic():.6f}"}}'
        data = self._event(delta, '"length"' if is_last else "null")
        if is_last:
            if self._usage:
                usage = USAGE % (9 + self._num_sent, self._num_sent)
                data += _chunk('{"id":"chatcmpl-0","choices":[]' + usage + "}")
            data += _chunk("[DONE]") + b"0\r\n\r\n"
        self.transport.write(data)
        return not is_last

    def _event(self, delta: str, finish_reason: str = "null") -> bytes:
        sent = self._num_sent
        return _chunk(
            CHUNK % (delta, finish_reason, USAGE % (9 + sent, sent) if self._usage_so_far else "")
        )


def _chunk(data: str) -> bytes:
    event = b"data: " + data.encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def serve_engine(pipe: Connection, step_s: float, burst: bool) -> None:
    """The engine's process: sends its port."""
    running: set[Engine] | None = set() if burst else None

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Engine(step_s, running), "127.0.0.1", 0, backlog=1000
        )
        pipe.send(server.sockets[0].getsockname()[1])
        while running is not None:
            await asyncio.sleep(step_s)
            for connection in [*running]:
                if not connection.send_token():
                    running.discard(connection)
        await server.serve_forever()

    uvloop.run(serve())


def serve_axion(pipe: Connection, engine_port: int, engine: str, max_connections: int) -> None:
    """Axion's process: sends its port."""
    configure_logging("warning")
    registry = ModelRegistry()
    upstream = RemoteBackend(f"http://127.0.0.1:{engine_port}/v1", engine=engine)
    registry.add(ModelConfig(model_name=NAME), upstream)
    listener = bind("127.0.0.1", 0)
    app = create_app(Settings(max_connections=max_connections), registry)
    ready = run(app, listener, on_ready=lambda: pipe.send(listener.getsockname()[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ready)


class Times(NamedTuple):
    """Of all streams, in seconds.

    Attributes:
        first: from a request to its first token.
        tokens: from the engine to here, of each token.
        gaps: from a token to the next, here.
    """

    first: list[float]
    tokens: list[float]
    gaps: list[float]


async def measure(port: int, num_streams: int, num_tokens: int, over_s: float) -> Times:
    """Args:
    over_s: within which time the streams begin.
    """
    clients = [await connect(port) for _ in range(num_streams)]
    times = Times([], [], [])

    async def stream(i: int, client: Client) -> None:
        await asyncio.sleep(over_s * i / num_streams)
        body: dict[str, Any] = {
            "model": NAME,
            "messages": [{"role": "user", "content": "The quick brown fox jumps over the dog."}],
            "max_tokens": num_tokens,
            "stream": True,
            "temperature": 0,
        }
        asked = time.monotonic()
        answer = await client.post(body, PATH)
        sent = [float(text) for text in re.findall(rb'"content":" ([\d.]+)"', answer)]
        arrived = client.arrivals[1 : 1 + num_tokens]  # the first has the role
        assert len(sent) == len(arrived) == num_tokens, (len(sent), len(arrived))
        times.first.append(arrived[0] - asked)
        times.tokens.extend(b - a for a, b in zip(sent, arrived, strict=True))
        times.gaps.extend(b - a for a, b in itertools.pairwise(arrived))
        client.transport.close()

    await asyncio.gather(*map(stream, range(num_streams), clients))
    return times


def cuts(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    found = statistics.quantiles(seconds, n=100, method="inclusive")
    return 1e3 * found[49], 1e3 * found[98]


def show(name: str, direct: list[float], proxied: list[float]) -> None:
    one, other = cuts(direct), cuts(proxied)
    columns = [f"{a:8.2f} {b:8.2f} {b - a:+8.2f}" for a, b in zip(one, other, strict=True)]
    print(f"  {name:26}{columns[0]}   {columns[1]}")


async def compare(arguments: argparse.Namespace, ports: tuple[int, int], axion: int) -> None:
    process = psutil.Process(axion)
    await measure(ports[1], 10, 100, 0)  # warm
    for num_streams in arguments.streams:
        ramp_s = arguments.ramp_s if num_streams > 1 else 0
        found: tuple[list[Times], list[Times]] = ([], [])
        cpu = 0.0
        walls = [0.0, 0.0]
        for _ in range(arguments.rounds):
            for which in (0, 1):
                before, start = sum(process.cpu_times()[:2]), time.monotonic()
                times = await measure(ports[which], num_streams, arguments.tokens, ramp_s)
                walls[which] += time.monotonic() - start
                cpu += (sum(process.cpu_times()[:2]) - before) * which
                found[which].append(times)
        print(f"{num_streams} streams: ms         direct    axion    added     direct    axion")
        for name, field in (("first token", 0), ("token, engine to client", 1), ("gap", 2)):
            pooled = [[x for times in side for x in times[field]] for side in found]
            show(name, *pooled)
        num_tokens = num_streams * arguments.tokens * arguments.rounds
        print(f"  {'tokens/s':26}{num_tokens / walls[0]:8.0f} {num_tokens / walls[1]:8.0f}")
        print(f"  {'CPU of Axion for a token':26}{1e6 * cpu / num_tokens:17.1f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--tokens", type=int, default=100, help="of each stream")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=30.0, help="from a token to the next")
    parser.add_argument("--ramp-s", type=float, default=1.0, help="in which the streams begin")
    parser.add_argument("--burst", action="store_true", help="all streams' tokens at one moment")
    parser.add_argument("--engine", default="vllm", help="what Axion takes the engine for")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = multiprocessing.Pipe()
    step_s = arguments.step_ms / 1e3
    engine = context.Process(target=serve_engine, args=(there, step_s, arguments.burst))
    engine.start()
    port = here.recv()
    most = max(arguments.streams) + 10
    axion = context.Process(target=serve_axion, args=(there, port, arguments.engine, most))
    axion.start()
    try:
        assert axion.pid is not None
        uvloop.run(compare(arguments, (port, here.recv()), axion.pid))
    finally:
        for process in (axion, engine):
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
