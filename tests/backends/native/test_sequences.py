from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from axion.errors import AxionError, EngineUnavailableError, InternalError
from axion.types import FinishReason, SequenceOutput
from tests.backends.native.harness import (
    DyingEngine,
    RecordingEngine,
    ScriptedEngine,
    Start,
    chat,
    chat_request,
    chat_stream,
    complete,
    fault,
    streamed_text,
)
from tests.echo_engine import EchoEngine


async def test_salt_and_priority_go_to_the_engine(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    await chat(backend, cache_salt="tenant 7", priority=-3)
    await complete(backend)
    assert engine.options == [
        {"cache_salt": "tenant 7", "priority": -3, "num_generated": 0},
        {"cache_salt": "", "priority": 0, "num_generated": 0},
    ]


async def test_choices_are_merged_as_they_come_and_the_prompt_counts_once(start: Start):
    engine = RecordingEngine()
    options = {"include_usage": True}
    backend = await start(engine)
    *chunks, last = await chat_stream(backend, "abc", n=3, seed=7, stream_options=options)
    assert [streamed_text(chunks, i) for i in range(3)] == ["abc"] * 3
    finished = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
    assert sorted(finished) == [0, 1, 2]
    order = [c.choices[0].index for c in chunks if c.choices[0].delta.content]
    assert order != sorted(order)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 9)
    assert len({params.seed for params in engine.params}) == 3
    assert engine.params[0].seed == 7


async def test_leaving_early_frees_every_sequence(start: Start):
    engine = EchoEngine()
    backend = await start(engine)
    for n in (1, 5):
        async with aclosing(backend.chat(chat_request("a" * 99, n=n, stream=True), "r")) as chunks:
            await anext(chunks)
            assert engine.stats.num_running == n
        assert engine.stats.num_running == 0


async def test_cancelling_frees_every_sequence(start: Start):
    engine = EchoEngine(token_delay_s=3600)
    backend = await start(engine)
    for n in (1, 5):
        task = asyncio.create_task(chat(backend, "abc", n=n))
        while engine.stats.num_running < n:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.stats.num_running == 0


async def test_an_engine_that_dies_ends_the_stream_with_an_error(start: Start):
    for n in (1, 3):
        engine = DyingEngine()
        backend = await start(engine)
        received = []
        with pytest.raises(EngineUnavailableError):
            async with aclosing(backend.chat(chat_request(n=n, stream=True), "r")) as chunks:
                async for chunk in chunks:
                    received.append(chunk)  # noqa: PERF401
        assert received
        assert all(chunk.choices[0].finish_reason is None for chunk in received)
        assert engine.stats.num_running == 0


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (SequenceOutput("r-0", [], None, FinishReason.ERROR, error="No logits."), InternalError),
        (SequenceOutput("r-0", [], None, FinishReason.ABORT), EngineUnavailableError),
    ],
)
async def test_a_sequence_that_fails_is_an_error(
    start: Start, output: SequenceOutput, expected: type[AxionError]
):
    backend = await start(ScriptedEngine(output))
    assert isinstance(await fault(backend.chat(chat_request(), "r")), expected)


async def test_a_stop_string_aborts_the_sequence_before_its_last_chunk(start: Start):
    engine = EchoEngine()
    backend = await start(engine)
    chunks = backend.chat(chat_request("one STOP two" * 50, stop="STOP", stream=True), "r")
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.choices[0].finish_reason:
                assert engine.stats.num_running == 0
