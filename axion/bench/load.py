"""Sends what is planned, so many at once (closed loop) or so many a second (open loop)."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from axion.bench.client import Target
from axion.bench.report import Sample
from axion.bench.workload import Kind, Planned, arrivals, plan


@dataclass(frozen=True, kw_only=True)
class Load:
    """How a server is asked.

    Attributes:
        num_requests, duration_s: the run ends with the earlier of them; one is given.
        concurrency: requests at once; in an open loop, as many as may be open.
        rate: requests a second, come when they may (Poisson). None: a closed loop.
        leave: share of the clients that hang up in the middle of their answer.
        timeout_s: after which a request counts as failed.
    """

    kinds: tuple[Kind, ...]
    num_requests: int | None = None
    duration_s: float | None = None
    concurrency: int = 1
    rate: float | None = None
    shared_prefix: float = 0.0
    leave: float = 0.0
    seed: int = 0
    timeout_s: float = 600.0


OnDone = Callable[[Sample], None]


async def run(target: Target, load: Load, on_done: OnDone = lambda sample: None) -> list[Sample]:
    """The samples, in the order in which the requests were due."""
    planned = plan(load.kinds, shared_prefix=load.shared_prefix, seed=load.seed)
    requests = enumerate(
        planned if load.num_requests is None else itertools.islice(planned, load.num_requests)
    )
    samples: dict[int, Sample] = {}
    begin = time.perf_counter()

    async def send(number: int, request: Planned, due: float) -> None:
        draw = random.Random(request.seed)
        leaves = draw.random() < load.leave
        leave_after = draw.randint(1, max(1, request.output_len // 2)) if leaves else None
        asking = target.ask(
            request, begin=begin, due=due, leave_after=leave_after, prefix_seed=load.seed
        )
        try:
            async with asyncio.timeout(load.timeout_s):
                sample = await asking
        except TimeoutError:
            sample = Sample(kind=request.kind, start=due, error=f"no end in {load.timeout_s:g} s")
        samples[number] = sample
        on_done(sample)

    def over(now: float) -> bool:
        return load.duration_s is not None and now >= load.duration_s

    if load.rate is None:
        await asyncio.gather(
            *(_worker(requests, begin, over, send) for _ in range(load.concurrency))
        )
    else:
        places = asyncio.Semaphore(load.concurrency)
        async with asyncio.TaskGroup() as tasks:
            for (number, request), due in zip(
                requests, arrivals(load.rate, load.seed), strict=False
            ):
                if over(due):
                    break
                await asyncio.sleep(begin + due - time.perf_counter())
                tasks.create_task(_in_place(places, send(number, request, due)))
    return [samples[number] for number in sorted(samples)]


async def _worker(
    requests: Iterator[tuple[int, Planned]],
    begin: float,
    over: Callable[[float], bool],
    send: Callable[[int, Planned, float], Coroutine[Any, Any, None]],
) -> None:
    while not over(now := time.perf_counter() - begin):
        try:
            number, request = next(requests)
        except StopIteration:
            return
        await send(number, request, now)


async def _in_place(places: asyncio.Semaphore, sending: Coroutine[Any, Any, None]) -> None:
    async with places:
        await sending
