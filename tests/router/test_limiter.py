"""How many requests an engine gets at once, and who waits: by a clock that the test sets."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from axion.errors import AxionError, CannotContinueError, EngineUnavailableError, QueueFullError
from axion.router.limiter import Limiter, Place

BUSY = QueueFullError("The engine is busy.")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Client:
    """Has one place, or waits for it, until it leaves."""

    def __init__(self, limiter: Limiter, priority: int = 0) -> None:
        self.place: Place | None = None
        self._end = asyncio.Event()
        self._error: AxionError | None = None
        self.task = asyncio.create_task(self._hold(limiter, priority))

    async def _hold(self, limiter: Limiter, priority: int) -> None:
        async with limiter.place(priority) as self.place:
            await self._end.wait()
            if self._error is not None:
                raise self._error

    async def end(self, error: AxionError | None = None) -> None:
        self._error = error
        self._end.set()
        await asyncio.gather(self.task, return_exceptions=True)

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def clients(limiter: Limiter, *priorities: int) -> list[Client]:
    """So many, in this order."""
    found = []
    for priority in priorities:
        found.append(Client(limiter, priority))
        await asyncio.sleep(0)
    return found


async def settle() -> None:
    """Whoever has been given a place knows it."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_who_finds_no_place_waits_and_who_finds_no_room_to_wait_is_refused(clock: Clock):
    limiter = Limiter(2, max_waiting=1, clock=clock)
    first, second, third = await clients(limiter, 0, 0, 0)
    assert first.place is not None
    assert second.place is not None
    assert third.place is None
    assert limiter.num_waiting == 1
    with pytest.raises(QueueFullError) as refusal:
        async with limiter.place():
            pytest.fail("there is no room")
    assert refusal.value.status == 429
    clock.now = 4.0
    await first.end()
    await settle()
    assert third.place is not None
    assert third.place.waited_s == 4.0
    await asyncio.gather(second.end(), third.end())
    assert limiter.num_waiting == 0


async def test_the_lowest_priority_is_next_and_equals_in_order_of_arrival(clock: Clock):
    limiter = Limiter(1, max_waiting=9, clock=clock)
    running, *waiting = await clients(limiter, 0, 5, 0, -1, 0, -1)
    order = []
    for _ in waiting:
        await running.end()
        await settle()
        [running] = [c for c in waiting if c.place is not None and c not in order]
        order.append(running)
    assert [waiting.index(client) for client in order] == [2, 4, 1, 3, 0]
    await running.end()


async def test_who_leaves_while_it_waits_takes_no_place(clock: Clock):
    limiter = Limiter(1, max_waiting=2, clock=clock)
    first, left, last = await clients(limiter, 0, 0, 0)
    await left.leave()
    assert limiter.num_waiting == 1
    await first.end()
    await settle()
    assert last.place is not None
    await last.end()


async def test_a_place_that_is_given_to_one_who_leaves_goes_to_the_next(clock: Clock):
    limiter = Limiter(1, max_waiting=2, clock=clock)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(limiter.place())
        left, last = await clients(limiter, 0, 0)
        await stack.aclose()  # gives it to the first of them, which does not know yet
        await left.leave()
    await settle()
    assert left.place is None
    assert last.place is not None
    await last.end()


async def test_a_place_that_is_free_when_the_next_one_leaves_goes_to_the_one_behind(clock: Clock):
    limiter = Limiter(1, max_waiting=2, clock=clock)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(limiter.place())
        left, last = await clients(limiter, 0, 0)
        left.task.cancel()  # it learns of it when the place has been given
        await stack.aclose()
    await settle()
    assert left.task.cancelled()
    assert last.place is not None
    await last.end()
    [other] = await clients(limiter, 0)
    assert other.place is not None
    await other.end()


@pytest.mark.parametrize("error", [BUSY, EngineUnavailableError("It does not answer.")], ids=str)
async def test_an_overload_halves_the_limit_once_for_all_that_were_under_way(
    clock: Clock, error: AxionError
):
    limiter = Limiter(16, lowest=3, clock=clock)
    early = await clients(limiter, *[0] * 16)
    clock.now = 1.0
    for client in early:
        await client.end(error)
    assert limiter.limit == 8
    for limit in (4, 3, 3):
        clock.now += 1.0
        [client] = await clients(limiter, 0)
        await client.end(error)
        assert limiter.limit == limit


async def test_what_is_no_overload_changes_nothing(clock: Clock):
    limiter = Limiter(4, clock=clock)
    begun, elsewhere, done = await clients(limiter, 0, 0, 0)
    assert begun.place is not None
    begun.place.begin()
    clock.now = 1.0
    await begun.end(EngineUnavailableError("It has fallen over."))
    await elsewhere.end(CannotContinueError("Not this one."))
    await done.end()
    assert limiter.limit == 4


async def answer(limiter: Limiter, clock: Clock, seconds: float) -> None:
    """One answer that begins after so many seconds, while another request waits."""
    running = await clients(limiter, *[0] * limiter.limit)
    [waiting] = await clients(limiter, 0)
    clock.now += seconds
    first = running[0].place
    assert first is not None
    assert waiting.place is None
    first.begin()
    for client in (*running, waiting):
        await client.end()


async def test_the_limit_rises_by_one_a_round_while_latency_holds(clock: Clock):
    limiter = Limiter(8, max_waiting=1, clock=clock)
    running = await clients(limiter, *[0] * 8)
    clock.now = 1.0
    for client in running:
        await client.end(BUSY)
    assert limiter.limit == 4
    for _ in range(5):
        await answer(limiter, clock, 0.1)
    assert limiter.limit == 5
    for _ in range(20):
        await answer(limiter, clock, 0.5)
    assert limiter.limit == 5, "answers begin later than they did"
    for _ in range(40):
        await answer(limiter, clock, 0.11)
    assert limiter.limit == 8, "and not above its highest"


async def test_what_is_not_used_does_not_rise(clock: Clock):
    limiter = Limiter(8, clock=clock)
    [client] = await clients(limiter, 0)
    clock.now = 1.0
    await client.end(BUSY)
    for _ in range(50):
        [client] = await clients(limiter, 0)
        assert client.place is not None
        client.place.begin()
        await client.end()
    assert limiter.limit == 4
