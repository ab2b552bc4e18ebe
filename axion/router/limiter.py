"""How many requests an engine is given at once, and the queue of those that wait for it."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from axion.errors import CannotContinueError, EngineUnavailableError, QueueFullError

# What an overload leaves of the limit.
_DECREASE = 0.5
# Latency holds while an answer begins within so many times the shortest time of late ...
_TOLERANCE = 2.0
# ... which is forgotten by this factor an answer.
_DRIFT = 1.01


class _Waiter(NamedTuple):
    priority: int
    arrival: int
    turn: asyncio.Future[None]


class Limiter:
    """Additive increase, multiplicative decrease, as TCP does (Chiu and Jain, 1989).

    Starts at its highest limit. A request that the engine refuses for overload, or does not begin
    to answer in time, halves the limit, once for all requests that were under way then. While
    requests wait, every answer that begins as soon as usual raises it, by one for each round of as
    many answers as it allows.

    Of those that wait, the lowest priority value comes first, and first come, first served among
    equals. Who leaves while it waits is not given to the engine.

    Args:
        highest: requests at the engine at once at most.
        lowest: what an overload leaves of these at least.
        max_waiting: requests that may wait for a place.
        clock: seconds.
    """

    def __init__(
        self,
        highest: int,
        *,
        lowest: int = 1,
        max_waiting: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._highest = highest
        self._lowest = lowest
        self._max_waiting = max_waiting
        self.clock = clock
        self._limit = float(highest)
        self._waiting: list[_Waiter] = []
        self._num_arrived = 0
        self._num_running = 0
        self._shortest_s = math.inf
        self._decreased_s = -math.inf

    @property
    def limit(self) -> int:
        """Requests that may be at the engine at once."""
        return int(self._limit)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, priority: int = 0) -> AsyncIterator[Place]:
        """Wait for a place at the engine, and hold it.

        Raises:
            QueueFullError: too many wait already.
        """
        arrived_s = self.clock()
        await self._take(priority)
        given_s = self.clock()
        place = Place(self, given_s, given_s - arrived_s)
        try:
            yield place
        except (QueueFullError, EngineUnavailableError) as error:
            is_overload = not (place.has_begun or isinstance(error, CannotContinueError))
            if is_overload and given_s > self._decreased_s:
                self._limit = max(self._limit * _DECREASE, self._lowest)
                self._decreased_s = self.clock()
            raise
        finally:
            self._num_running -= 1
            self._fill()

    def began(self, seconds: float) -> None:
        """An answer has begun, so long after its request had got its place."""
        self._shortest_s = min(self._shortest_s * _DRIFT, seconds)
        if self._waiting and seconds <= _TOLERANCE * self._shortest_s:
            self._limit = min(self._limit + 1 / self._limit, self._highest)
            self._fill()

    async def _take(self, priority: int) -> None:
        if self._num_running < self.limit and not self._waiting:
            self._num_running += 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(
                f"{self._num_running + self.num_waiting} requests are at this model's engine or "
                "wait for it, which is all that may. Send the request again in a moment."
            )
        self._num_arrived += 1
        turn = asyncio.get_running_loop().create_future()
        waiter = _Waiter(priority, self._num_arrived, turn)
        insort(self._waiting, waiter)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it has got its place in the same moment
                self._num_running -= 1
                self._fill()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _fill(self) -> None:
        """Give the places that are free to those that wait."""
        while self._waiting and self._num_running < self.limit:
            turn = self._waiting.pop(0).turn
            if not turn.cancelled():  # it has left, and does not know it yet
                self._num_running += 1
                turn.set_result(None)


@dataclass
class Place:
    """One request's place at an engine.

    Attributes:
        given_s: when it got it, by the limiter's clock.
        waited_s: seconds that it had waited for it.
        has_begun: the engine has begun to answer.
    """

    limiter: Limiter
    given_s: float
    waited_s: float
    has_begun: bool = False

    def begin(self) -> None:
        """A part of the answer is there; only the first one counts."""
        if not self.has_begun:
            self.has_begun = True
            self.limiter.began(self.limiter.clock() - self.given_s)
