"""The engine's process is killed: clients, also those who come then, notice nothing but a pause."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.e2e.test_server import MODEL, start, until

NUM_STREAMS = 20
NUM_TOKENS = 80


def fields(i: int) -> dict[str, Any]:
    sampled = {"temperature": 1.0, "seed": i, "presence_penalty": 0.5} if i % 2 else {}
    return {
        "model": MODEL,
        "prompt": f"Stream {i}: What is {i} + {2 * i}?",
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
        **sampled,
    }


async def test_no_token_is_lost_or_doubled_and_nobody_refused_when_the_engine_is_killed(
    tmp_path: Path,
):
    # In bfloat16 a token may depend on which sequences are in its batch, without any crash.
    server = await asyncio.to_thread(
        start, tmp_path, CONCURRENT_REQUESTS=str(NUM_STREAMS), DTYPE="float32"
    )
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    num_begun = 0
    all_begun = asyncio.Event()

    def health() -> httpx.Response:
        return httpx.get(f"{server.url}/health")

    async def whole(i: int) -> tuple[str, Any]:
        answer = await client.completions.create(**fields(i))
        return answer.choices[0].text, answer.usage.completion_tokens

    async def stream(i: int) -> tuple[str, Any, float]:
        nonlocal num_begun
        text, tokens, longest = "", None, 0.0
        chunks = await client.completions.create(
            **fields(i), stream=True, stream_options={"include_usage": True}
        )
        last = time.monotonic()
        finishes = 0
        async for chunk in chunks:
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            for choice in chunk.choices:
                finishes += choice.finish_reason is not None
                num_begun += not text and bool(choice.text)
                text += choice.text
            if num_begun == NUM_STREAMS:
                all_begun.set()
        assert finishes == 1
        return text, tokens, longest

    try:
        async with asyncio.timeout(240):
            expected = await asyncio.gather(*map(whole, range(NUM_STREAMS)))
            streams = [asyncio.create_task(stream(i)) for i in range(NUM_STREAMS)]
            await all_begun.wait()
            server.engine().kill()
            await asyncio.to_thread(until, lambda: health().status_code == 503)
            late = asyncio.create_task(whole(0))
            results = await asyncio.gather(*streams)
            assert await late == expected[0]
        assert [(text, tokens) for text, tokens, _ in results] == expected
        assert {tokens for _, tokens, _ in results} == {NUM_TOKENS}
        print(f"longest gap: {max(gap for _, _, gap in results):.1f} s")
        assert health().status_code == 200
    finally:
        await client.close()
        assert await asyncio.to_thread(server.stop) == 0
