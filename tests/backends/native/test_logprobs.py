from __future__ import annotations

import asyncio
import json
import math
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axion.backends.native.backend import NativeBackend
from axion.openai.completions import collect_completion
from axion.types import FinishReason, SequenceOutput, TokenLogprobs
from tests.backends.native.harness import (
    CALL,
    TOOLS,
    RecordingEngine,
    ScriptedEngine,
    Start,
    chat,
    chat_stream,
    complete,
    completion_request,
    fault,
)
from tests.echo_engine import EchoEngine


async def score(backend: NativeBackend, prompt: Any, **fields: Any) -> dict[str, Any]:
    """As JSON: OpenAI's own types have no place for the first token's null."""
    request = completion_request(prompt, echo=True, **fields)
    async with aclosing(backend.complete(request, "r")) as chunks:
        answer: dict[str, Any] = json.loads((await collect_completion(chunks)).to_json())
    return answer


@pytest.mark.parametrize("prompt", ["ab the 狐", [66, 67, 0, 68], "a"], ids=str)
@pytest.mark.parametrize("max_tokens", [0, 1, 50])
async def test_a_prompt_is_scored_in_the_legacy_shape(start: Start, prompt: Any, max_tokens: int):
    engine = RecordingEngine(vocab_size=280)
    answer = await score(await start(engine), prompt, logprobs=2, max_tokens=max_tokens, n=2)
    num_tokens = answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"] // 2
    for choice in answer["choices"]:
        logprobs, text = choice["logprobs"], choice["text"]
        assert {len(entries) for entries in logprobs.values()} == {num_tokens}
        assert logprobs["token_logprobs"] == [None] + [math.log(0.5)] * (num_tokens - 1)
        assert logprobs["top_logprobs"][0] is None
        for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert token in top
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert token in ("<|end|>", text[offset : offset + len(token)]) or "bytes:" in token
        if max_tokens == 0:
            assert choice["finish_reason"] == "length"
            assert text == (prompt if isinstance(prompt, str) else "bcd")


async def test_a_prompt_that_fills_the_context_can_be_scored(start: Start):
    backend = await start(EchoEngine(max_model_len=10))
    answer = await score(backend, [5] * 10, logprobs=0, max_tokens=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 10
    error = await fault(backend.complete(completion_request([5] * 11, max_tokens=0), "r"))
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")


@given(text=st.text(min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_log_probabilities_have_the_exact_bytes_of_the_answer(start: Start, text: str):
    async def run() -> None:
        backend = await start(EchoEngine(vocab_size=280))
        chunks = await chat_stream(backend, text, logprobs=True, top_logprobs=3)
        sent = expected = ""
        for chunk in chunks:
            (choice,) = chunk.choices
            sent += choice.delta.content or ""
            entries = (choice.logprobs and choice.logprobs.content) or []
            data = b"".join(bytes(entry.bytes or ()) for entry in entries)
            expected += data.decode()  # whole characters: each entry is with its text
            assert sent == expected
            assert all(len(entry.top_logprobs) == 3 for entry in entries)
            assert all(entry.top_logprobs[0].bytes == entry.bytes for entry in entries)
        assert sent == text

    asyncio.run(run())


async def test_a_part_of_a_character_is_shown_as_openai_does(start: Start):
    backend = await start(EchoEngine())
    answer = await chat(backend, "狐", logprobs=True)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == ["\\xe7", "\\x8b", "\\x90"]
    assert [entry.bytes for entry in entries] == [[0xE7], [0x8B], [0x90]]
    assert all(entry.top_logprobs == [] for entry in entries)
    legacy = (await complete(backend, "狐", logprobs=0)).choices[0].logprobs
    assert legacy is not None
    assert legacy.tokens == ["bytes:\\xe7", "bytes:\\x8b", "bytes:\\x90"]


async def test_legacy_log_probabilities_have_one_entry_a_token(start: Start):
    answer = await complete(await start(EchoEngine(vocab_size=280)), "ab the 狐", logprobs=2)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    for token, offset, top in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True
    ):
        assert token in top
        assert len(top) == 2
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)


async def test_the_tokens_of_a_stop_string_go_with_it(start: Start):
    backend = await start(EchoEngine())
    answer = await chat(backend, "abSTOPcd", stop="STOP", logprobs=True)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == ["a", "b"]


async def test_an_impossible_token_has_openais_lowest_log_probability(start: Start):
    never = TokenLogprobs(float("-inf"), [(35, float("-inf"))])
    end = SequenceOutput("r-0", [34], [never], FinishReason.LENGTH)
    backend = await start(ScriptedEngine(end))
    answer = await chat(backend, logprobs=True, top_logprobs=1)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    (entry,) = answer.choices[0].logprobs.content
    assert (entry.logprob, entry.top_logprobs[0].logprob) == (-9999.0, -9999.0)


async def test_log_probabilities_of_a_tool_call_are_not_lost(start: Start):
    backend = await start(EchoEngine(), "tools")
    content = f"Hm. {CALL}"
    answer = await chat(backend, content, tools=TOOLS, logprobs=True)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert "".join(entry.token for entry in entries) == content
