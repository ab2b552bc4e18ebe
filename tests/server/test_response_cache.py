"""The response cache alone, and in front of a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from axion.backends.base import ModelConfig
from axion.errors import EngineUnavailableError
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.server.response_cache import (
    ENTRY_BYTES,
    CachedAnswer,
    CacheResult,
    ResponseCache,
    cache_directives,
)
from axion.settings import Settings
from tests.server.conftest import MODEL, LiveServer, ScriptedBackend

HIT, MISS, BYPASS = CacheResult.HIT, CacheResult.MISS, CacheResult.BYPASS


class Computation:
    """Counts its runs, and ends when it is told to."""

    def __init__(self, *, waits: bool = False) -> None:
        self.num_begun = 0
        self.num_cancelled = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None
        if not waits:
            self.may_end.set()

    async def __call__(self) -> bytes:
        self.num_begun += 1
        number = self.num_begun
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return f"answer {number}".encode()


Ask = Callable[..., Awaitable[CachedAnswer]]


def asks(cache: ResponseCache, compute: Computation) -> Ask:
    async def ask(key: bytes = b"k", deterministic: bool = True, *directives: str) -> CachedAnswer:
        return await cache.answer(
            key, compute, is_deterministic=deterministic, directives=directives
        )

    return ask


async def begun(compute: Computation, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while compute.num_begun < count:
            await asyncio.sleep(0)


async def test_the_second_time_the_answer_is_there_with_its_age():
    now = 100.0
    cache = ResponseCache(10, 10**6, clock=lambda: now)
    ask = asks(cache, Computation())
    assert await ask() == (b"answer 1", MISS, 0)
    now = 107.9
    assert await ask() == (b"answer 1", HIT, 7)
    assert await ask(b"other") == (b"answer 2", MISS, 0)


async def test_the_least_recently_used_answer_goes_first():
    cache = ResponseCache(2, 10**6)
    ask = asks(cache, Computation())
    for key in (b"a", b"b", b"a", b"c"):
        await ask(key)
    assert len(cache) == 2
    assert [(await ask(key)).result for key in (b"a", b"c", b"b")] == [HIT, HIT, MISS]


async def test_the_bytes_are_bounded_and_what_is_larger_is_not_kept():
    cache = ResponseCache(1000, 3 * (ENTRY_BYTES + 10))

    async def answer(key: bytes, size: int) -> CacheResult:
        async def compute() -> bytes:
            return b"x" * size

        return (await cache.answer(key, compute, is_deterministic=True)).result

    for i in range(20):
        await answer(str(i).encode(), 10)
        assert cache.num_bytes <= 3 * (ENTRY_BYTES + 10)
    assert len(cache) == 3
    assert [await answer(b"large", 10**5) for _ in range(2)] == [MISS, MISS]
    assert len(cache) == 3, "it pushed nothing out"


@pytest.mark.parametrize(
    ("arguments", "deterministic", "results"),
    [
        ((10, 10**6, "all"), False, [MISS, HIT]),
        ((10, 10**6, "deterministic"), True, [MISS, HIT]),
        ((10, 10**6, "deterministic"), False, [BYPASS, BYPASS]),
        ((10, 10**6, "off"), True, [BYPASS, BYPASS]),
        ((0, 10**6, "all"), True, [BYPASS, BYPASS]),
        ((10, 0, "all"), True, [BYPASS, BYPASS]),
    ],
)
async def test_the_policy_says_what_is_kept(
    arguments: Any, deterministic: bool, results: list[CacheResult]
):
    ask = asks(ResponseCache(*arguments), Computation())
    assert [(await ask(b"k", deterministic)).result for _ in range(2)] == results


async def test_no_store_neither_reads_nor_keeps():
    cache = ResponseCache(10, 10**6)
    ask = asks(cache, Computation())
    assert await ask(b"k", True, "no-store") == (b"answer 1", BYPASS, 0)
    assert len(cache) == 0
    await ask()
    assert await ask(b"k", True, "no-store") == (b"answer 3", BYPASS, 0)
    assert (await ask()).body == b"answer 2"


async def test_no_cache_computes_anew_and_keeps_the_result():
    ask = asks(ResponseCache(10, 10**6), Computation())
    await ask()
    assert await ask(b"k", True, "no-cache") == (b"answer 2", BYPASS, 0)
    assert await ask() == (b"answer 2", HIT, 0)


async def test_equal_requests_in_flight_share_one_run():
    compute = Computation(waits=True)
    cache = ResponseCache(10, 10**6)
    ask = asks(cache, compute)
    tasks = [asyncio.create_task(ask()) for _ in range(5)]
    other = asyncio.create_task(ask(b"other"))
    await begun(compute, 2)
    compute.may_end.set()
    answers = await asyncio.gather(*tasks)
    assert compute.num_begun == 2
    assert [answer.result for answer in answers] == [MISS] + [HIT] * 4
    assert {answer.body for answer in answers} == {b"answer 1"}
    assert (await other).body == b"answer 2"
    assert not cache._runs


async def test_requests_in_flight_that_are_drawn_anew_do_not_share():
    compute = Computation(waits=True)
    ask = asks(ResponseCache(10, 10**6), compute)
    tasks = [asyncio.create_task(ask(b"k", False)) for _ in range(3)]
    await begun(compute, 3)
    compute.may_end.set()
    assert len({answer.body for answer in await asyncio.gather(*tasks)}) == 3


async def test_the_run_goes_on_when_its_first_client_leaves():
    compute = Computation(waits=True)
    ask = asks(ResponseCache(10, 10**6), compute)
    leader = asyncio.create_task(ask())
    await begun(compute)
    joiner = asyncio.create_task(ask())
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    compute.may_end.set()
    assert await joiner == (b"answer 1", HIT, 0)
    assert (compute.num_begun, compute.num_cancelled) == (1, 0)


async def test_the_run_ends_when_all_its_clients_have_left():
    compute = Computation(waits=True)
    cache = ResponseCache(10, 10**6)
    ask = asks(cache, compute)
    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    await begun(compute)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    again = asyncio.create_task(ask())  # does not join what is ending
    await begun(compute, 2)
    assert compute.num_cancelled == 1
    compute.may_end.set()
    assert await again == (b"answer 2", MISS, 0)


async def test_a_failure_is_everybodys_and_is_not_kept():
    compute = Computation(waits=True)
    cache = ResponseCache(10, 10**6)
    ask = asks(cache, compute)
    tasks = [asyncio.create_task(ask()) for _ in range(3)]
    await begun(compute)
    compute.error = EngineUnavailableError("gone")
    compute.may_end.set()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is compute.error
    assert (compute.num_begun, len(cache), cache._runs) == (1, 0, {})
    compute.error = None
    assert await ask() == (b"answer 2", MISS, 0)


async def test_any_order_of_asking_leaving_and_failing_leaves_nothing_behind():
    cache = ResponseCache(3, 10**6)
    computations: list[Computation] = []
    tasks: list[asyncio.Task[CachedAnswer]] = []
    for i in range(300):
        compute = Computation(waits=i % 3 > 0)
        compute.error = EngineUnavailableError("gone") if i % 7 == 0 else None
        computations.append(compute)
        tasks.append(asyncio.create_task(asks(cache, compute)(b"%d" % (i % 5), i % 4 > 0)))
        if i % 2:
            await asyncio.sleep(0)
        tasks[i * 5 % len(tasks)].cancel()
        if i > 20:
            computations[i - 20].may_end.set()
    for compute in computations:
        compute.may_end.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not cache._runs
    assert len(cache) <= 3


def test_directives_are_read_by_name():
    values = ["No-Cache, max-age=0", "no-store ,x"]
    assert cache_directives(values) == {"no-cache", "max-age", "no-store", "x"}
    assert cache_directives(["x-no-store"]) == {"x-no-store"}


# In front of a server.


def ask(server: LiveServer, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)


def results(server: LiveServer, *requests: dict[str, Any]) -> list[str]:
    return [ask(server, **request).headers["X-Axion-Cache"] for request in requests]


def metric(server: LiveServer, line: str) -> float:
    for found in httpx.get(f"{server.url}/metrics").text.splitlines():
        if found.startswith(line + " "):
            return float(found.split()[-1])
    raise AssertionError(line)


def test_a_repeated_request_is_answered_from_the_cache(
    server: LiveServer, backend: ScriptedBackend
):
    first, second = ask(server), ask(server, user="somebody else")
    assert (first.headers["X-Axion-Cache"], second.headers["X-Axion-Cache"]) == ("miss", "hit")
    assert first.content == second.content
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]
    assert "Age" not in first.headers
    assert second.headers["Age"] == "0"
    assert len(backend.seen) == 1
    assert metric(server, 'axion_response_cache_requests_total{result="hit"}') == 1
    assert metric(server, 'axion_response_cache_requests_total{result="miss"}') == 1
    assert metric(server, "axion_response_cache_entries") == 1
    assert metric(server, "axion_response_cache_bytes") == len(first.content) + ENTRY_BYTES


def test_the_clients_cache_control_is_honoured(server: LiveServer, backend: ScriptedBackend):
    found = results(
        server,
        {"headers": {"Cache-Control": "no-store"}},
        {},
        {"headers": {"Cache-Control": "no-cache"}},
        {"headers": {"Cache-Control": "max-age=0, No-Store"}},
        {},
    )
    assert found == ["bypass", "miss", "bypass", "bypass", "hit"]
    assert len(backend.seen) == 4


def test_streams_and_text_completions_are_not_cached(server: LiveServer, backend: ScriptedBackend):
    for _ in range(2):
        assert "X-Axion-Cache" not in ask(server, stream=True).headers
        body = {"model": MODEL, "prompt": "a"}
        assert "X-Axion-Cache" not in httpx.post(f"{server.url}/v1/completions", json=body).headers
    assert len(backend.seen) == 4


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"cache_policy": "off"}, ["bypass"] * 4),
        ({"cache_capacity": 0}, ["bypass"] * 4),
        ({"cache_policy": "deterministic"}, ["bypass", "bypass", "miss", "hit"]),
    ],
)
def test_the_settings_say_what_is_cached(
    settings: Settings, registry: ModelRegistry, fields: dict[str, Any], found: list[str]
):
    with LiveServer(settings.model_copy(update=fields), registry) as server:
        assert results(server, {}, {}, {"temperature": 0}, {"temperature": 0}) == found


@pytest.mark.parametrize("num_tokens", [0, 2])
def test_an_answer_that_fails_is_not_cached(
    server: LiveServer, backend: ScriptedBackend, num_tokens: int
):
    backend.fail_at = (num_tokens, EngineUnavailableError("The engine stopped."))
    assert ask(server, temperature=0).status_code == 503
    assert metric(server, "axion_response_cache_entries") == 0
    backend.fail_at = None
    assert ask(server, temperature=0).headers["X-Axion-Cache"] == "miss"


@contextlib.contextmanager
def held(server: LiveServer, backend: ScriptedBackend) -> Iterator[None]:
    """The backend gives no token before the block ends."""
    event = server.call(asyncio.Event)
    backend.pause = event.wait
    try:
        yield
    finally:
        server.loop.call_soon_threadsafe(event.set)


def test_a_client_that_leaves_does_not_end_the_run_of_others(
    server: LiveServer, backend: ScriptedBackend
):
    answers: list[httpx.Response] = []
    with held(server, backend):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
        content = json.dumps(body).encode()
        leader = server.connect()
        leader.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
            % (len(content), content)
        )
        server.wait_for(lambda: backend.running == 1)
        joiner = threading.Thread(target=lambda: answers.append(ask(server, temperature=0)))
        joiner.start()
        server.wait_for(lambda: server.state.num_in_flight == 2)
        leader.close()
        server.wait_for(lambda: server.state.num_in_flight == 1)
        assert backend.running == 1
    joiner.join(10)
    assert [answer.headers["X-Axion-Cache"] for answer in answers] == ["hit"]
    assert len(backend.seen) == 1


def test_the_run_of_the_only_client_ends_when_it_leaves(
    server: LiveServer, backend: ScriptedBackend
):
    with held(server, backend):
        with contextlib.suppress(httpx.ReadTimeout):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
            url = f"{server.url}/v1/chat/completions"
            httpx.post(url, json=body | {"temperature": 0}, timeout=0.3)
        server.wait_for(lambda: backend.running == 0)
    assert metric(server, "axion_response_cache_entries") == 0


async def test_the_answer_of_an_engine_that_stepped_in_is_not_kept(settings: Settings):
    first, second = ScriptedBackend("a"), ScriptedBackend("b")
    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=MODEL), first, second)
    await registry.start()
    transport = httpx.ASGITransport(create_app(settings, registry))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    first.fail_at = (1, EngineUnavailableError("It fell over."))
    told = []
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(3):
            headers = (await client.post("/v1/chat/completions", json=body)).headers
            told.append((headers["x-axion-backend"], headers["x-axion-cache"]))
            first.fail_at = None
    assert told == [("b", "miss"), ("a", "miss"), ("a", "hit")]
