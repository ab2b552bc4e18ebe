from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio

from axion.bench.client import BenchError, Target
from axion.bench.load import Load, run
from axion.bench.report import figures
from axion.bench.workload import Kind, Range
from tests.backends.fake_server import DEFAULTS, FakeServer

LOAD = Load(kinds=(Kind(Range(30, 50), Range(5, 9)),), num_requests=20, concurrency=4)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def fake(server: FakeServer) -> FakeServer:
    server.control(**DEFAULTS)
    return server


@pytest_asyncio.fixture
async def target(fake: FakeServer) -> AsyncIterator[Target]:
    target = Target(fake.url)
    yield target
    await target.close()


@pytest.mark.parametrize("chat", [True, False])
async def test_prompts_and_answers_are_as_long_as_planned(fake: FakeServer, chat: bool):
    fake.control(num_tokens=3)  # where it would stop by itself
    target = Target(f"{fake.url}/v1", chat=chat)
    await target.prepare()
    assert target.model == "fake-model"
    assert target.keeps_length
    samples = await run(target, LOAD)
    await target.close()
    assert len(samples) == 20
    for sample in samples:
        assert sample.error is None
        assert 30 <= sample.prompt_tokens <= 50
        assert sample.output_tokens == len(sample.chunks)
        assert 5 <= sample.output_tokens <= 9
        assert sample.ttft is not None
        assert 0 < sample.ttft <= sample.chunks[-1] <= sample.latency


async def test_a_closed_loop_keeps_as_many_requests_open_as_asked(fake: FakeServer, target: Target):
    await target.prepare()
    fake.control(token_s=0.01)
    samples = await run(target, replace(LOAD, num_requests=12))
    events = [(s.start, 1) for s in samples] + [(s.start + s.latency, -1) for s in samples]
    num_open, most = 0, 0
    for _, change in sorted(events):
        num_open += change
        most = max(most, num_open)
    assert most == 4


async def test_in_an_open_loop_waiting_to_be_sent_counts(fake: FakeServer, target: Target):
    await target.prepare()
    fake.control(first_token_s=0.1)
    # All are due at nearly one moment, and one may be open: the last waits for all others.
    samples = await run(target, replace(LOAD, num_requests=4, rate=1000.0, concurrency=1))
    waits = sorted(sample.ttft or 0.0 for sample in samples)
    assert waits[0] >= 0.1
    assert waits[-1] >= 0.39


async def test_a_run_ends_with_its_time(fake: FakeServer, target: Target):
    await target.prepare()
    samples = await run(target, replace(LOAD, num_requests=None, duration_s=0.2))
    assert samples
    assert all(sample.start < 0.2 for sample in samples)


async def test_who_leaves_hangs_up_and_is_counted_apart(fake: FakeServer, target: Target):
    await target.prepare()
    fake.control(token_s=0.005)
    samples = await run(target, replace(LOAD, leave=1.0))
    found = figures(samples, concurrency=4)
    assert (found.num_ok, found.num_failed, found.num_left) == (0, 0, 20)
    assert fake.stats()["num_aborted"] > 0


@pytest.mark.parametrize("fault", ["status", "close", "no_done", "error_event", "garbage"])
async def test_every_failure_is_counted_with_its_reason(
    fake: FakeServer, target: Target, fault: str
):
    await target.prepare()
    fake.control(fault=fault, times=5)
    found = figures(await run(target, LOAD), concurrency=4)
    assert (found.num_ok, found.num_failed) == (15, 5)
    assert sum(found.errors.values()) == 5
    assert all(found.errors)


async def test_a_server_that_tells_no_usage_cannot_be_measured(fake: FakeServer, target: Target):
    fake.control(drop=["usage"])
    with pytest.raises(BenchError, match="usage"):
        await target.prepare()


async def test_no_server_is_told(target: Target):
    nobody = Target("http://127.0.0.1:1")
    with pytest.raises(BenchError, match="no server"):
        await nobody.prepare()
