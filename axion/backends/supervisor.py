"""What keeps a process running: it is started, restarted, and at last given up for a while.

The same for Axion's own workers and for servers of other makers; what one life of such a process
is, the owner says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import ClassVar

from axion.errors import EngineUnavailableError
from axion.types import BackendState

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class Supervisor:
    """Runs one life of a process after the other.

    The first start raises what it raises. After that, a life that ends is followed by the next
    after a pause that doubles with every failure. One that fails again and again is given up: it
    stays down, and is tried once more after a long pause (an open circuit, half open now and then).

    Args:
        live: one life. It calls `ready` when requests can be answered and `down` as soon as they
            no longer can; it returns how it ended, or raises.
        title: what the process is called in messages: `engine process`.
        on_given_up: called with the cause when the process is given up.
        clock, sleep: as `time.monotonic` and `asyncio.sleep`.

    Attributes:
        state, detail: for `BackendHealth`.
        restarts: lives begun after the first.
        first_backoff_s: pause before the first restart, in seconds.
        max_backoff_s: longest pause between two restarts.
        stable_after_s: a life that was ready for so long begins the pauses and counts anew.
        max_restarts: restarts within `window_s` seconds; the next failure gives the process up.
        retry_after_s: pause before a process that was given up is tried once more.
    """

    first_backoff_s: ClassVar[float] = 0.5
    max_backoff_s: ClassVar[float] = 30.0
    stable_after_s: ClassVar[float] = 60.0
    max_restarts: ClassVar[int] = 5
    window_s: ClassVar[float] = 600.0
    retry_after_s: ClassVar[float] = 300.0

    def __init__(
        self,
        live: Callable[[], Awaitable[str]],
        *,
        title: str,
        logger: logging.Logger,
        on_given_up: Callable[[str], None] | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._live = live
        self._title = title
        self._logger = logger
        self._on_given_up = on_given_up or (lambda cause: None)
        self._clock = clock
        self._sleep = sleep
        self.state = BackendState.STARTING
        self.detail = "The model is loading."
        self.restarts = 0
        self._failures: deque[float] = deque()
        self._backoff_s = self.first_backoff_s
        self._given_up = False
        self._life_began_at = clock()
        self._ready_at: float | None = None
        self._start_s = 0.0
        self._started: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def has_started(self) -> bool:
        """Whether it was ready once."""
        return self._started is not None and self._started.done()

    def returns_within(self, limit_s: float) -> bool:
        """Whether it is being restarted, and a start takes less than `limit_s` seconds."""
        return (
            self.state is BackendState.DOWN
            and self.has_started
            and not self._given_up
            and self._start_s < limit_s
        )

    async def start(self) -> None:
        """Returns when the first life is ready; raises what ended it before that."""
        self._started = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(self._started))
        try:
            await asyncio.shield(self._started)
        except BaseException:
            await self.end(grace_s=0)
            self._started.exception()  # who cancelled this does not ask for it
            raise

    def ready(self) -> None:
        """Requests can be answered."""
        self._ready_at = self._clock()
        self._start_s = self._ready_at - self._life_began_at
        if self.state is not BackendState.STOPPED:
            self.state, self.detail = BackendState.READY, ""
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def down(self) -> None:
        """Requests can no longer be answered."""
        if self.state is not BackendState.STOPPED:
            self.state = BackendState.DOWN
            self.detail = f"The {self._title} ended and is being restarted."

    def retire(self) -> None:
        """Take no more requests, and let this life be the last."""
        self.state, self.detail = BackendState.STOPPED, "The server is shutting down."

    async def end(self, grace_s: float) -> None:
        """Wait `grace_s` seconds for the life to end by itself, then end it."""
        if self._task is None:
            return
        await asyncio.wait((self._task,), timeout=grace_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._started is not None and not self._started.done():
            self._started.set_exception(EngineUnavailableError(self.detail))

    async def _supervise(self, started: asyncio.Future[None]) -> None:
        while True:
            self._ready_at = None
            self._life_began_at = self._clock()
            try:
                cause = await self._live()
            except Exception as error:  # whatever it is: the next life may be better
                if not started.done():
                    started.set_exception(error)
                    return
                cause = f"{type(error).__name__}: {error}"
            if self.state is BackendState.STOPPED:
                return
            self.down()
            await self._sleep(self._pause(cause))
            self.restarts += 1

    def _pause(self, cause: str) -> float:
        """Seconds before the next life, after one that ended."""
        now = self._clock()
        if self._ready_at is not None and now - self._ready_at > self.stable_after_s:
            self._backoff_s, self._given_up = self.first_backoff_s, False
        self._failures.append(now)
        while now - self._failures[0] > self.window_s:
            self._failures.popleft()
        if self._given_up or len(self._failures) > self.max_restarts:
            self._given_up = True
            self._failures.clear()
            self.detail = (
                f"The {self._title} fails again and again; it is tried once more in "
                f"{self.retry_after_s:.0f} s. The server's log says why."
            )
            self._logger.error(
                "the %s is down (%s); it fails again and again, trying once more in %.0f s",
                *(self._title, cause, self.retry_after_s),
            )
            self._on_given_up(cause)
            return self.retry_after_s
        pause_s = self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self.max_backoff_s)
        self._logger.error(
            "the %s is down (%s); restarting it in %.1f s", self._title, cause, pause_s
        )
        return pause_s
