from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from axion.errors import EngineUnavailableError
from axion.types import BackendState, FinishReason, SamplingParams, SequenceOutput
from tests.echo_engine import EchoEngine


async def collect(
    engine: EchoEngine, prompt: list[int], request_id: str = "r", **params: object
) -> list[SequenceOutput]:
    outputs = engine.generate(request_id, prompt, SamplingParams(**params))  # type: ignore[arg-type]
    async with aclosing(outputs):
        return [output async for output in outputs]


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def test_the_prompt_comes_back_one_token_a_step():
    outputs = await collect(EchoEngine(), [5, 6, 7])
    assert [output.token_ids for output in outputs] == [[5], [6], [7]]
    assert [output.finish_reason for output in outputs] == [None, None, FinishReason.STOP]


@pytest.mark.parametrize(
    ("params", "expected", "reason"),
    [
        ({"max_tokens": 2}, [5, 6], FinishReason.LENGTH),
        ({"max_tokens": 5, "ignore_eos": True}, [5, 6, 7, 5, 6], FinishReason.LENGTH),
        ({"min_tokens": 4}, [5, 6, 7, 5], FinishReason.STOP),
        ({"stop_token_ids": (6,)}, [5, 6], FinishReason.STOP),
        ({"stop_token_ids": (5,), "min_tokens": 2}, [5, 6, 7], FinishReason.STOP),
    ],
)
async def test_the_limits_of_a_sequence_hold(
    params: dict[str, object], expected: list[int], reason: FinishReason
):
    outputs = await collect(EchoEngine(), [5, 6, 7], **params)
    assert tokens(outputs) == expected
    assert outputs[-1].finish_reason is reason


async def test_a_sequence_ends_with_the_context():
    outputs = await collect(EchoEngine(max_model_len=5), [5, 6, 7])
    assert tokens(outputs) == [5, 6]
    assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_log_probabilities_come_with_each_token():
    (output,) = await collect(EchoEngine(vocab_size=6), [5], logprobs=2)
    assert output.logprobs is not None
    (entry,) = output.logprobs
    assert [token for token, _ in entry.top] == [5, 0]
    assert entry.logprob == entry.top[0][1] > entry.top[1][1]


async def test_all_sequences_advance_in_the_same_step():
    engine = EchoEngine()
    await asyncio.gather(*(collect(engine, [1, 2, 3], f"r{i}") for i in range(10)))
    assert engine.stats.num_steps == 3
    assert engine.stats.num_generated_tokens == 30
    assert engine.stats.num_running == 0


async def test_closing_the_iterator_frees_the_sequence():
    engine = EchoEngine()
    async with aclosing(engine.generate("r", [1, 2, 3], SamplingParams())) as outputs:
        await anext(outputs)
        assert engine.stats.num_running == 1
    assert engine.stats.num_running == 0


async def test_a_stopped_engine_lets_sequences_finish_and_takes_no_more():
    engine = EchoEngine()
    running = asyncio.create_task(collect(engine, [1, 2, 3]))
    while not engine.stats.num_running:
        await asyncio.sleep(0)
    await engine.stop(drain_s=60)
    assert tokens(await running) == [1, 2, 3]
    assert engine.health().state is BackendState.STOPPED
    with pytest.raises(EngineUnavailableError):
        await collect(engine, [1])


async def test_what_does_not_finish_in_time_is_ended():
    engine = EchoEngine(token_delay_s=3600)
    running = asyncio.create_task(collect(engine, [1, 2, 3]))
    while not engine.stats.num_running:
        await asyncio.sleep(0)
    await engine.stop(drain_s=0)
    with pytest.raises(EngineUnavailableError):
        await running


@pytest.mark.parametrize("num_generated", range(5))
async def test_a_sequence_that_was_begun_goes_on(num_generated: int):
    params = SamplingParams(max_tokens=5, ignore_eos=True, prompt_logprobs=0, min_tokens=4)
    answer = [5, 6, 7, 5, 6]
    token_ids = [5, 6, 7, *answer[:num_generated]]
    outputs = EchoEngine().generate("r", token_ids, params, num_generated=num_generated)
    async with aclosing(outputs):
        assert tokens([output async for output in outputs]) == answer[num_generated:]
