"""The response cache: how long a hit takes, against the same request computed.

    python benchmarks/cache.py [--model axion/demo] [--requests 2000] [--prompt-chars 2000]

The server runs in a process of its own with an engine that answers at once, so that a miss shows
the server's own time; this process asks over one loopback connection, one request after the other.
The aim is a p99 of a hit below 2 ms. The server's cheapest answer, measured in turn with the hits,
shows how much of it is the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import uvloop

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.observability.logging import configure_logging
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.server.listener import bind
from axion.server.runner import run
from axion.settings import Settings
from axion.types import EngineConfig
from tests.echo_engine import EchoEngine

NAME = "echo"


def serve(pipe: Connection, model: str) -> None:
    """The server's process: sends its port."""
    configure_logging("warning")

    async def start(config: EngineConfig) -> EchoEngine:
        return EchoEngine(max_model_len=config.max_model_len)

    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=model, served_name=NAME), NativeBackend(start))
    listener = bind("127.0.0.1", 0)
    app = create_app(Settings(), registry)
    ready = run(app, listener, on_ready=lambda: pipe.send(listener.getsockname()[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ready)


def ask(connection: http.client.HTTPConnection, prompt: str, expected: str) -> float:
    """Seconds of one request."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 16,
    }
    content = json.dumps(body).encode()
    start = time.perf_counter()
    connection.request(
        "POST", "/v1/chat/completions", content, {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    response.read()
    elapsed = time.perf_counter() - start
    assert response.status == 200, response.status
    assert response.headers["X-Axion-Cache"] == expected
    return elapsed


def ask_version(connection: http.client.HTTPConnection) -> float:
    """Seconds of the cheapest request."""
    start = time.perf_counter()
    connection.request("GET", "/version")
    connection.getresponse().read()
    return time.perf_counter() - start


def show(name: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=1000)
    print(f"{name:24} p50 {1e3 * cuts[499]:7.2f} ms   p99 {1e3 * cuts[989]:7.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="axion/demo", help="whose tokenizer and template to use")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--prompt-chars", type=int, default=2000)
    arguments = parser.parse_args()
    prompt = ("The quick brown fox jumps over the lazy dog. " * 1000)[: arguments.prompt_chars]

    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(there, arguments.model)
    )
    server.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", here.recv())
        ask(connection, prompt, "miss")
        both = [
            (ask_version(connection), ask(connection, prompt, "hit"))
            for _ in range(arguments.requests)
        ]
        misses = [ask(connection, f"{i} {prompt}", "miss") for i in range(arguments.requests)]
        connection.close()
    finally:
        server.terminate()
        server.join()
    print(f"a prompt of {arguments.prompt_chars} characters, an answer of 16 tokens")
    show("GET /version", [version for version, _ in both])
    show("hit", [hit for _, hit in both])
    show("miss, without a model", misses)


if __name__ == "__main__":
    main()
