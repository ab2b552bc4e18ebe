from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

from axion.openai.completions import CompletionChunk
from tests.backends.native.harness import Start, complete, completion_request
from tests.echo_engine import EchoEngine


async def test_several_prompts_have_choices_in_order(start: Start):
    answer = await complete(await start(EchoEngine()), ["ab", "cde"], n=2)
    assert [choice.text for choice in answer.choices] == ["ab", "ab", "cde", "cde"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 10)


async def test_echo_begins_every_answer_with_its_prompt(start: Start):
    backend = await start(EchoEngine())
    answer = await complete(backend, ["ab", "ü狐"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "ü狐ü狐", "ü狐ü狐"]
    (choice,) = (await complete(backend, [3, 4], echo=True)).choices
    assert choice.text == "#$#$"


def test_chunks_of_a_completion_have_openais_shape(folders: dict[str, Path], start: Start):
    async def run() -> list[CompletionChunk]:
        backend = await start(EchoEngine())
        request = completion_request(stream=True, stream_options={"include_usage": True})
        async with aclosing(backend.complete(request, "r")) as chunks:
            return [chunk async for chunk in chunks]

    chunks = [json.loads(chunk.to_json()) for chunk in asyncio.run(run())]
    for data in chunks[:-1]:
        assert data.keys() == {
            "id", "object", "created", "model", "system_fingerprint", "choices", "usage",
        }  # fmt: skip
        assert data["usage"] is None
        assert data["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0
