"""Requests to an upstream, and what comes of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from axion.backends.capabilities import Capabilities
from axion.backends.upstream.client import Upstream
from axion.errors import AxionError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered
from tests.backends.fake_server import FakeServer

STYLES = ("vllm", "max", "llama_cpp")


HONOURS_ALL = Capabilities(engine="fake", honours_all=True)


HONOURS_NOTHING = Capabilities(engine="fake")


TOOL = {"type": "function", "function": {"name": "f"}}


LEAKS = ("/usr", "127.0.0.1", "http:", "core.py", "Traceback", "secret")


COUNTS = {"max": {"return_token_ids": True}, "llama_cpp": {"timings_per_token": True}}


def chat_request(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "Count please"}]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return ChatCompletionRequest.model_validate(
        {"model": "m", "messages": messages, **stream, **fields}
    )


def text_request(**fields: Any) -> CompletionRequest:
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return CompletionRequest.model_validate({"model": "m", "prompt": "Count", **stream, **fields})


def dumped(chunk: ChatCompletionChunk | CompletionChunk) -> Any:
    return json.loads(chunk.to_json())


async def take(
    chunks: AsyncIterator[Any], delivered: Delivered | None = None
) -> tuple[list[Any], AxionError | None]:
    """The chunks up to the end or the error."""
    taken = []
    try:
        async with asyncio.timeout(20):
            async for chunk in chunks:
                taken.append(chunk)
                if delivered is not None:
                    delivered.take(chunk)
    except AxionError as error:
        return taken, error
    return taken, None


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def repairing(upstream: Callable[..., Upstream], server: FakeServer, style: str) -> Upstream:
    return upstream(server, capabilities=HONOURS_NOTHING, counts=COUNTS[style])
