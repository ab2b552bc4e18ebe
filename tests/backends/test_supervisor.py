"""Restarting: pauses that grow, an end to them, and a try now and then after that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from axion.backends.supervisor import Sleep, Supervisor
from axion.types import BackendState

logger = logging.getLogger("axion.test")


class Lives:
    """A process whose lives end as a list says, and a clock that only pauses and lives move.

    Attributes:
        pauses: what was slept, in seconds.
        given_up: causes that the process was given up for.
    """

    def __init__(self, *lives: float | Exception | None) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.given_up: list[str] = []
        self._lives = iter(lives)
        self.over = asyncio.Event()
        self.supervisor = Supervisor(
            self._live,
            title="test process",
            logger=logger,
            on_given_up=self.given_up.append,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

    async def _live(self) -> str:
        """Ready for so many seconds, or never, or failing; for ever after the last."""
        life = next(self._lives, "end")
        if isinstance(life, Exception):
            raise life
        if life is not None:
            self.supervisor.ready()
        if life == "end":
            self.over.set()
            await asyncio.Event().wait()
        self.now += life or 0
        return "it ended with status 1"

    async def _sleep(self, pause_s: float) -> None:
        assert self.supervisor.state is BackendState.DOWN
        self.pauses.append(pause_s)
        self.now += pause_s
        await asyncio.sleep(0)

    async def run(self) -> None:
        await self.supervisor.start()
        async with asyncio.timeout(10):
            await self.over.wait()
        await self.supervisor.end(0)


async def test_the_first_start_raises_what_it_raises():
    lives = Lives(ValueError("no model"))
    with pytest.raises(ValueError, match="no model"):
        await lives.supervisor.start()
    assert lives.pauses == []


async def test_pauses_double_with_every_failure():
    lives = Lives(1, None, OSError("no memory"), 1)
    await lives.run()
    assert lives.pauses == [0.5, 1, 2, 4]
    assert lives.supervisor.restarts == 4
    assert lives.given_up == []


async def test_pauses_have_a_cap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Supervisor, "max_restarts", 9)
    lives = Lives(*[1] * 9)
    await lives.run()
    assert lives.pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


async def test_a_stable_life_begins_the_pauses_anew():
    lives = Lives(1, 1, 61, 1)
    await lives.run()
    assert lives.pauses == [0.5, 1, 0.5, 1]


async def test_a_slow_start_is_no_stable_life():
    lives = Lives(1, 1)

    async def slow(live: Callable[[], Awaitable[str]] = lives.supervisor._live) -> str:
        lives.now += 90
        return await live()

    lives.supervisor._live = slow
    await lives.run()
    assert lives.pauses == [0.5, 1]


async def test_it_returns_as_fast_as_it_started_unless_it_is_given_up():
    lives = Lives(*[1] * 6)
    supervisor = lives.supervisor
    soon = []

    async def sleep(pause_s: float, pause: Sleep = lives._sleep) -> None:
        soon.append((supervisor.returns_within(20), supervisor.returns_within(10)))
        await pause(pause_s)

    async def slow(live: Callable[[], Awaitable[str]] = supervisor._live) -> str:
        lives.now += 15
        return await live()

    supervisor._sleep, supervisor._live = sleep, slow
    assert not supervisor.returns_within(20)
    await lives.run()
    assert soon == [(True, False)] * 5 + [(False, False)]


async def test_what_fails_again_and_again_is_given_up_and_tried_now_and_then():
    lives = Lives(*[1] * 6, None, None, 61, 1)
    await lives.run()
    # Five restarts, then a long pause before each single try, until one life is stable.
    assert lives.pauses[5:8] == [300, 300, 300]
    assert lives.pauses[8:] == [0.5, 1]
    assert len(lives.given_up) == 3
    assert lives.given_up[0] == "it ended with status 1"


async def test_failures_that_are_far_apart_do_not_add_up():
    lives = Lives(*[200] * 20)
    await lives.run()
    assert lives.given_up == []


async def test_who_asks_is_told_that_it_was_given_up():
    details: list[str] = []
    lives = Lives(*[1] * 6)
    lives.supervisor._on_given_up = lambda cause: details.append(lives.supervisor.detail)
    await lives.run()
    assert "again and again" in details[0]
    assert lives.supervisor.state is BackendState.READY


async def test_a_retired_process_is_not_started_again():
    lives = Lives(1, 1, 1)

    def retire(pause_s: float) -> None:
        raise AssertionError

    lives.supervisor._pause = retire
    lives.supervisor.ready = lambda: (
        Supervisor.ready(lives.supervisor),
        lives.supervisor.retire(),
    )
    await lives.supervisor.start()
    await lives.supervisor.end(10)
    assert lives.supervisor.state is BackendState.STOPPED
    assert lives.supervisor.restarts == 0
