from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
import uvloop

from axion.backends.upstream.client import Upstream
from axion.errors import EngineUnavailableError, NotFoundError
from tests.backends.upstream.harness import LEAKS, chat_request, take, until


@pytest.mark.parametrize("fault", ["", "silent", "hang"])
async def test_a_client_who_leaves_frees_the_engine(fake, upstream, fault: str):
    server = fake(num_tokens=10**6, token_s=0.001, fault=fault, after=0 if fault == "hang" else 2)
    up = upstream(server)

    async def client() -> None:
        async with aclosing(up.chat(chat_request(), "1")) as chunks:
            async for _ in chunks:
                pass

    task = asyncio.create_task(client())
    await until(lambda: server.stats()["num_running"] == 1)
    assert up.num_running == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: server.stats()["num_aborted"] == 1)
    assert (up.num_running, server.stats()["num_running"]) == (0, 0)


async def test_many_streams_at_once_share_connections_in_turn(fake, upstream):
    server = fake(num_tokens=50)
    up = upstream(server)
    for _ in range(2):
        answers = await asyncio.gather(*(take(up.chat(chat_request(), str(i))) for i in range(100)))
        assert all(error is None and len(chunks) == 53 for chunks, error in answers)
    assert server.stats()["num_requests"] == 200
    assert len(up._client._open) <= 100


def test_streams_that_break_off_on_the_servers_event_loop(fake):
    server = fake(num_tokens=30, fault="close", after=7, times=20)

    async def run() -> None:
        up = Upstream(server.url, engine="fake", upstream_model="fake-model", served_name="m")
        answers = await asyncio.gather(*(take(up.chat(chat_request(), str(i))) for i in range(50)))
        assert sorted(len(chunks) for chunks, _ in answers) == [8] * 20 + [33] * 30
        await up.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_draining_waits_for_requests_and_ends_those_that_take_too_long(fake, upstream):
    up = upstream(fake(num_tokens=5, token_s=0.01))
    quick = asyncio.create_task(take(up.chat(chat_request(), "1")))
    await until(lambda: up.num_running == 1)
    await up.drain(10)
    assert (await quick)[1] is None
    _, error = await take(up.chat(chat_request(), "2"))
    assert isinstance(error, EngineUnavailableError)

    up = upstream(fake(fault="silent", after=1))
    endless = asyncio.create_task(take(up.chat(chat_request(), "1")))
    await until(lambda: up.num_running == 1)
    await up.drain(0.01)
    assert isinstance((await endless)[1], EngineUnavailableError)


async def test_nobody_there(upstream):
    up = Upstream("http://127.0.0.1:1/v1", engine="fake", upstream_model="u", served_name="m")
    _, error = await take(up.chat(chat_request(), "1"))
    assert type(error) is EngineUnavailableError
    assert not any(leak in error.message for leak in LEAKS)
    assert not await up.is_healthy()
    with pytest.raises(EngineUnavailableError):
        await up.answers()


async def test_health(fake, upstream):
    server = fake(healthy=False)
    up = upstream(server)
    assert not await up.is_healthy()
    server.control(healthy=True)
    assert await up.is_healthy()
    server.control(fault="hang_all")
    assert not await up.is_healthy(timeout_s=0.05)


async def test_answers_means_a_real_token(fake, upstream):
    server = fake(fault="status", times=1, status=400, message="no chat template")
    up = upstream(server)
    await up.answers()
    assert server.stats()["body"] == {"model": "fake-model", "max_tokens": 1, "prompt": "Hi"}
    server.control(fault="status", times=-1, status=500)
    with pytest.raises(EngineUnavailableError):
        await up.answers()


async def test_tokens(fake, upstream):
    up = upstream(fake())
    tokens = await up.tokenize("a bcd", with_strings=True)
    assert (tokens.token_ids, tokens.token_strings) == ([1, 3], ["a", "bcd"])
    assert (await up.tokenize(chat_request())).token_ids == [5, 6]
    assert await up.detokenize([4, 5]) == " 4 5"
    with pytest.raises(NotFoundError):
        await upstream(fake("max")).tokenize("a")
