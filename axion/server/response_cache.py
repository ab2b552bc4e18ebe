"""Whole answers kept for when they are asked for again, and shared while they are computed.

What decides an answer is the backend's to say: it hands out the key. What is kept is the answer's
bytes, so that a repeated answer is the same answer, `id` and `created` included.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Literal, NamedTuple

from cachetools import LRUCache

# What an entry takes besides its answer: key, time, and its places in the cache's tables.
ENTRY_BYTES = 512

Policy = Literal["all", "deterministic", "off"]
Compute = Callable[[], Coroutine[Any, Any, bytes]]


class CacheResult(enum.StrEnum):
    """What the cache did for a request: `X-Axion-Cache`."""

    HIT = "hit"
    MISS = "miss"
    BYPASS = "bypass"


class CachedAnswer(NamedTuple):
    """An answer's body and where it is from.

    Attributes:
        age_s: since it was computed, in seconds; 0 unless it is a hit.
    """

    body: bytes
    result: CacheResult
    age_s: int = 0


class ResponseCache:
    """The least recently used answer goes first when there are too many, or too many bytes.

    Belongs to one event loop.

    Args:
        capacity: most answers; 0 is off.
        max_bytes: most memory for them, in bytes; 0 is off.
        policy: `deterministic` caches only answers that would be the same every time.
        clock: seconds, for the age of an answer.
    """

    def __init__(
        self,
        capacity: int,
        max_bytes: int,
        policy: Policy = "all",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._policy = policy
        self._clock = clock
        self._entries: LRUCache[bytes, _Entry] = LRUCache(
            max_bytes, getsizeof=lambda entry: len(entry.body) + ENTRY_BYTES
        )
        self._runs: dict[bytes, _Run] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        return int(self._entries.currsize)

    @property
    def is_on(self) -> bool:
        return self._policy != "off" and self._capacity > 0 and self._entries.maxsize > 0

    async def answer(
        self,
        key: bytes,
        compute: Compute,
        *,
        is_deterministic: bool,
        directives: Iterable[str] = (),
        keep: Callable[[], bool] = lambda: True,
    ) -> CachedAnswer:
        """The answer under `key`: kept, on its way for another request, or computed now.

        Requests share a run only where it would give each of them the same answer anyway. The
        run goes on for as long as one of them waits, and when it fails, it fails for all.

        Args:
            compute: called at most once; what it raises is raised here, and nothing is kept.
            directives: of the request's Cache-Control. `no-store` keeps out of the cache
                altogether, `no-cache` computes anew and keeps the result.
            keep: asked when the answer is there, whether it is what `key` stands for.
        """
        eligible = self.is_on and (is_deterministic or self._policy == "all")
        if not eligible or "no-store" in directives:
            return CachedAnswer(await compute(), CacheResult.BYPASS)
        if "no-cache" in directives:
            return CachedAnswer(await self._compute(key, compute, keep), CacheResult.BYPASS)
        entry = self._entries.get(key)
        if entry is not None:
            age_s = int(self._clock() - entry.stored_at)
            return CachedAnswer(entry.body, CacheResult.HIT, age_s)
        if not is_deterministic:
            return CachedAnswer(await self._compute(key, compute, keep), CacheResult.MISS)
        run = self._runs.get(key)
        if run is not None:
            return CachedAnswer(await self._wait(key, run), CacheResult.HIT)
        self._runs[key] = run = _Run(asyncio.create_task(self._compute(key, compute, keep)))
        return CachedAnswer(await self._wait(key, run), CacheResult.MISS)

    async def _wait(self, key: bytes, run: _Run) -> bytes:
        run.num_waiting += 1
        try:
            return await asyncio.shield(run.task)
        finally:
            run.num_waiting -= 1
            if not run.num_waiting or run.task.done():
                run.task.cancel()
                if self._runs.get(key) is run:
                    del self._runs[key]

    async def _compute(
        self, key: bytes, compute: Callable[[], Awaitable[bytes]], keep: Callable[[], bool]
    ) -> bytes:
        body = await compute()
        entry = _Entry(body, self._clock())
        if keep() and self._entries.getsizeof(entry) <= self._entries.maxsize:
            self._entries[key] = entry
            while len(self._entries) > self._capacity:
                self._entries.popitem()
        return body


class _Entry(NamedTuple):
    body: bytes
    stored_at: float


class _Run:
    """An answer being computed, and how many requests wait for it."""

    def __init__(self, task: asyncio.Task[bytes]) -> None:
        self.task = task
        self.num_waiting = 0


def cache_directives(values: Iterable[str]) -> frozenset[str]:
    """The names of the directives in the values of Cache-Control headers."""
    return frozenset(
        directive.partition("=")[0].strip().lower()
        for value in values
        for directive in value.split(",")
    )
