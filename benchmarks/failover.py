"""An engine is killed under its streams: what is lost, and the longest gap that a client saw.

    python benchmarks/failover.py [--streams 50] [--tokens 200] [--engine vllm]

Two cases. The native engine alone: its process is killed, and its streams go on in the next one.
A spawned engine with the native engine standing by: its server is killed, and the native engine
goes on with its streams. That server is a stand-in for vLLM that gives the same tokens as the
native engine (`tests/e2e/stand_in.py`), or with --engine a real one, found as `axion serve` finds
it; its answers may then differ by more than a failure. Each stream is compared with the same
stream uninterrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from startup import free_port, wait_until

import axion
from axion.text.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).parents[1]))
from tests.e2e.stand_in import write_command

DEMO = Path(axion.__file__).parent / "demo" / "model"


class Stream(NamedTuple):
    text: str
    num_tokens: int
    longest_gap_s: float
    num_finishes: int


@contextmanager
def served(**environment: str) -> Iterator[tuple[str, psutil.Process]]:
    """Axion with all its engines ready: its URL and process."""
    port = free_port()
    given = {"SERVER_HOST": "127.0.0.1", "SERVER_PORT": str(port), "AXION_LOG": "off"}
    process = subprocess.Popen(
        [sys.executable, "-m", "axion"],
        env={**os.environ, **given, **environment},
        stdout=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(client, "/health/ready", {200}, process)
            while True:
                (model,) = client.get("/health").json()["models"]
                if {engine["state"] for engine in model["health"]["engines"]} == {"ready"}:
                    break
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1/completions", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


async def stream(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], begun: asyncio.Semaphore
) -> Stream:
    """Args:
    begun: released at the first token.
    """
    text, num_tokens, num_finishes, longest = "", 0, 0, 0.0
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        last = None
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.monotonic()
            if last is None:
                begun.release()
            else:
                longest = max(longest, now - last)
            last = now
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                break
            if chunk["usage"]:
                num_tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                text += choice["text"]
                num_finishes += choice["finish_reason"] is not None
    return Stream(text, num_tokens, longest, num_finishes)


async def run(url: str, bodies: list[dict[str, Any]], kill: Any = None) -> list[Stream]:
    """All streams at once; `kill` is called when each has begun."""
    begun = asyncio.Semaphore(0)
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        streams = [asyncio.create_task(stream(client, url, body, begun)) for body in bodies]
        if kill is not None:
            for _ in bodies:
                await begun.acquire()
            num_over = sum(task.done() for task in streams)
            kill()
            print(f"  killed with {len(bodies) - num_over} streams running")
        return await asyncio.gather(*streams)


def engine_of(axion: psutil.Process, *, native: bool) -> psutil.Process:
    """The process of the native engine, or the main one of the engine that Axion spawned."""
    wanted = "axion.engine.process" if native else "guard.py"
    (found,) = (x for x in axion.children() if wanted in " ".join(x.cmdline()))
    return found if native else found.children()[0]


def measure(title: str, bodies: list[dict[str, Any]], *, native: bool, **environment: str) -> None:
    print(title)
    with served(**environment) as (url, axion):
        expected = asyncio.run(run(url, bodies))
        found = asyncio.run(run(url, bodies, engine_of(axion, native=native).kill))
    pairs = list(zip(found, expected, strict=True))
    num_lost = sum(max(0, b.num_tokens - a.num_tokens) for a, b in pairs)
    num_double = sum(max(0, a.num_tokens - b.num_tokens) for a, b in pairs)
    print(f"  streams with the same text      {sum(a.text == b.text for a, b in pairs)}")
    print(f"  streams with one finish_reason  {sum(a.num_finishes == 1 for a in found)}")
    print(f"  tokens lost, doubled            {num_lost}, {num_double}")
    print(f"  longest gap                     {max(a.longest_gap_s for a in found):.2f} s")
    print(f"  longest gap without a failure   {max(a.longest_gap_s for a in expected):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--engine", help="a real one (default: a stand-in for vllm)")
    parser.add_argument("--model", default="axion/demo", help="id or folder")
    arguments = parser.parse_args()
    folder = DEMO if arguments.model == "axion/demo" else Path(arguments.model)
    # A token without text is not in what another engine goes on from.
    bias = dict.fromkeys(map(str, load_tokenizer(folder).special_token_ids), -100)
    bodies = [
        {
            "model": "model",
            "prompt": f"What is {i} + {2 * i}?",
            "max_tokens": arguments.tokens,
            "temperature": 0,
            "logit_bias": bias,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for i in range(arguments.streams)
    ]
    with tempfile.TemporaryDirectory() as place:
        # In bfloat16 a token may depend on which sequences are in its batch.
        shared = {
            "MODEL_NAME": arguments.model,
            "SERVED_MODEL_NAME": "model",
            "DTYPE": "float32",
            "CONCURRENT_REQUESTS": str(arguments.streams),
        }
        measure("native alone", bodies, native=True, AXION_BACKENDS="native", **shared)
        engine = arguments.engine or "vllm"
        if arguments.engine is None:
            shared["AXION_VLLM_COMMAND"] = str(write_command(Path(place)))
            shared["XDG_CACHE_HOME"] = place
        names = f"{engine},native"
        measure(
            f"{engine}, native standing by", bodies, native=False, AXION_BACKENDS=names, **shared
        )


if __name__ == "__main__":
    main()
