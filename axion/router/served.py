"""One model and the engines that may serve it: which of them run, and who can take a request."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from axion.backends.base import InferenceBackend, ModelConfig
from axion.errors import AxionError, EngineUnavailableError, InvalidRequestError, ModelLoadError
from axion.router.candidate import LOADING, NOT_LOADED, Candidate
from axion.router.decide import Decision
from axion.router.limiter import Limiter
from axion.router.plan import Begin, Plan
from axion.router.shadow import Shadow
from axion.types import BackendHealth, BackendState, EngineHealth

logger = logging.getLogger("axion.router")

# How long a request whose engine has failed waits for another one to load, in seconds.
START_WAIT_S = 60.0
# How long the requests of an engine that is no longer needed may go on, in seconds.
_RETIRE_DRAIN_S = 600.0

Standby = Literal["always", "start", "never"]


@dataclass(frozen=True, kw_only=True)
class RoutingPolicy:
    """How a model's requests are shared among its engines.

    Attributes:
        standby: whether the last engine runs beside the first: always, only until that one has
            started, or not at all.
        weights: share of the requests by engine; the first that can takes all if it is empty.
        shadow: an engine that gets a copy of some requests, and their share, 0 to 1.
        max_queue: requests that may wait for an engine.
        max_upstream_requests: requests that an engine without a queue of its own gets at once.
    """

    standby: Standby = "always"
    weights: dict[str, float] = field(default_factory=dict)
    shadow: tuple[str, float] | None = None
    max_queue: int = 1000
    max_upstream_requests: int = 1000

    def limiter(self, backend: InferenceBackend, model: ModelConfig) -> Limiter:
        """What gives an engine's requests their places.

        One with a queue of its own gets all requests at once: it knows best which of them it can
        compute together. Only how many wait in it is limited. What another one can take is found
        out.
        """
        if backend.has_own_queue:
            capacity = model.max_num_seqs + self.max_queue
            return Limiter(capacity, lowest=capacity)
        return Limiter(self.max_upstream_requests, max_waiting=self.max_queue)

    @property
    def engines(self) -> frozenset[str]:
        """Those that run whether or not another one does."""
        shadow = {self.shadow[0]} if self.shadow is not None else set()
        return frozenset(shadow | self.weights.keys())


Planner = Callable[[Begin], Awaitable[Plan]]


class ServedModel:
    """One model, and the engines that may serve it, the one that is wanted most first.

    That one is started, and the last beside it if the policy has it stand by. An engine that
    cannot be loaded has the next one loaded in its place, and so has one that fails later.

    Args:
        planner: gives the engines when the model is started. What it passes on before it is done is
            loaded meanwhile.

    Attributes:
        created: seconds since the epoch at which the server took the model up.
        candidates: the engines; before they are planned none, or the one that is loaded meanwhile.
        decision: why these engines; None before that, or where nobody had to decide.
        shadow: what copies requests to another engine, if the policy says so.
    """

    def __init__(self, model: ModelConfig, planner: Planner, policy: RoutingPolicy) -> None:
        self.model = model
        self.policy = policy
        self.created = int(time.time())
        self.candidates: list[Candidate] = []
        self.decision: Decision | None = None
        self.shadow: Shadow | None = None
        self._planner = planner
        self._planning: asyncio.Task[None] | None = None
        self._has_begun = asyncio.Event()
        self._is_down = False
        self._is_stopped = False
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return self.model.name

    async def start(self) -> None:
        """Load the model; returns when one of its engines can answer.

        Raises:
            AxionError: no engine can be had; the state is then down.
        """
        try:
            self._planning = asyncio.create_task(self._plan())
            await self._has_begun.wait()
            while True:
                if self._planning.done():
                    self._planning.result()  # or why there is no plan
                if any(candidate.has_started for candidate in self.candidates):
                    return
                if not await self._one_more_loaded():
                    raise next(c.failure for c in reversed(self.candidates) if c.failure)
        except BaseException:
            self._is_down = True
            await self._end(0)
            raise

    async def choose(
        self,
        features: Collection[str] = (),
        without: Collection[Candidate] = (),
        *,
        may_load: bool = True,
    ) -> Candidate:
        """The engine for a request.

        Args:
            features: what the request asks for; see `axion.openai.features`.
            without: engines that have failed on it already.
            may_load: whether an engine may be loaded for it, or waited for.

        Where engines have failed, on this request or altogether, the next one is loaded, and
        one that is being loaded is waited for.

        Raises:
            InvalidRequestError: engines answer, and none of them honours the request.
            EngineUnavailableError: no engine can take it now.
        """
        capable, ready = await self._able(features, without)
        if not capable and may_load and (without or (not ready and self._has_failed)):
            self._launch_another()
            deadline = time.monotonic() + START_WAIT_S
            while not capable and await self._one_more_loaded(deadline - time.monotonic()):
                capable, ready = await self._able(features, without)
        if capable:
            return self._pick(capable)
        raise self._not_honoured(features, ready[0]) if ready else await self._unavailable()

    async def health(self) -> BackendHealth:
        """Of the engine that is wanted most of those that answer, and a word on each engine."""
        healths = {candidate: await candidate.health() for candidate in self.candidates}
        best = BackendHealth(state=BackendState.STARTING, detail=LOADING)
        if self._is_stopped:
            best = BackendHealth(state=BackendState.STOPPED, detail="The server is shutting down.")
        elif self._is_down:
            best = BackendHealth(state=BackendState.DOWN, detail=NOT_LOADED)
        else:
            started = [healths[c] for c in self.candidates if c.has_started]
            ready = [health for health in started if health.state is BackendState.READY]
            best = next(iter(ready or started), best)
        return msgspec.structs.replace(
            best,
            engines=tuple(
                EngineHealth(
                    c.engine,
                    health.state,
                    health.detail,
                    health.restarts,
                    num_waiting=c.limiter.num_waiting,
                    limit=c.limiter.limit,
                )
                for c, health in healths.items()
            ),
        )

    async def stop(self, drain_s: float) -> None:
        """Let running requests finish for `drain_s` seconds, then end."""
        self._is_stopped = True
        await self._end(drain_s)

    async def _plan(self) -> None:
        """Have the engines planned, and load those that are wanted from the start."""
        begun: dict[InferenceBackend, Candidate] = {}

        def begin(backend: InferenceBackend, model: ModelConfig) -> None:
            begun[backend] = candidate = self._candidate(backend, model)
            self.candidates.append(candidate)
            self._launch(candidate)
            self._has_begun.set()

        try:
            plan = await self._planner(begin)
        except Exception as error:
            if not any(candidate.has_started for candidate in self.candidates):
                raise
            logger.error("%s is served without its other engines: %s", self.name, error)
            return
        finally:
            self._has_begun.set()
        self.candidates = [
            begun.get(backend) or self._candidate(backend, model)
            for backend, model in plan.backends
        ]
        self.decision = plan.decision
        self.shadow = self._create_shadow()
        if not self.candidates:
            raise ModelLoadError(f"There is no engine that serves {self.name}.")
        self._launch(self.candidates[0])
        if self.policy.standby != "never" and self._standby_fits:
            self._launch(self.candidates[-1])
        for candidate in self.candidates:
            if candidate.engine in self.policy.engines:
                self._launch(candidate)

    def _candidate(self, backend: InferenceBackend, model: ModelConfig) -> Candidate:
        return Candidate(backend, model, self.policy.limiter(backend, model))

    @property
    def _standby_fits(self) -> bool:
        return self.decision is None or self.decision.standby_fits

    @property
    def _begun(self) -> list[asyncio.Task[None]]:
        """The planning and the starts of engines, over or not."""
        tasks = [self._planning, *(candidate.starting for candidate in self.candidates)]
        return [task for task in tasks if task is not None]

    @property
    def _has_one_engine(self) -> bool:
        is_planned = self._planning is not None and self._planning.done()
        return is_planned and len(self.candidates) == 1

    def _create_shadow(self) -> Shadow | None:
        if self.policy.shadow is None:
            return None
        engine, share = self.policy.shadow
        found = next((c for c in self.candidates if c.engine == engine), None)
        return None if found is None else Shadow(self.name, found, share)

    @property
    def _has_failed(self) -> bool:
        """Whether, where no engine answers, one has before."""
        return not self._is_stopped and any(c.has_started for c in self.candidates)

    async def _able(
        self, features: Collection[str], without: Collection[Candidate]
    ) -> tuple[list[Candidate], list[Candidate]]:
        """Engines that take requests: those that honour all of `features`, and all that are ready.

        One whose requests wait until it is back takes some only if no other one does.
        """
        if self._is_stopped:
            return [], []
        healths = [(c, await c.health()) for c in self.candidates if c not in without]
        able = [item for item in healths if not item[0].backend.capabilities.missing(features)]
        capable = [c for c, health in able if health.state is BackendState.READY]
        returning = [c for c, health in able if health.returns_soon]
        return capable or returning, [c for c, h in healths if h.state is BackendState.READY]

    def _pick(self, capable: list[Candidate]) -> Candidate:
        weights = [self.policy.weights.get(candidate.engine, 0.0) for candidate in capable]
        return random.choices(capable, weights)[0] if any(weights) else capable[0]

    def _not_honoured(self, features: Collection[str], candidate: Candidate) -> AxionError:
        missing = candidate.backend.capabilities.missing(features)
        field = missing[0].partition(".")[0]
        return InvalidRequestError(
            f"{missing[0]} is not supported by {candidate.engine}, which serves {self.name}, and "
            "no engine that honours it runs beside it. Leave it out, or have the native engine "
            "stand by.",
            param=field,
        )

    async def _unavailable(self) -> AxionError:
        health = await self.health()
        if health.state is BackendState.READY:  # the request has failed on it
            return EngineUnavailableError("No engine is left that could answer this request.")
        return EngineUnavailableError(f"The model is {health.state}. {health.detail}")

    def _launch(self, candidate: Candidate) -> None:
        if candidate.starting is None:
            candidate.starting = asyncio.create_task(self._start(candidate))

    def _launch_another(self) -> None:
        """Load the next engine that nobody has tried yet."""
        for candidate in () if self._is_stopped else self.candidates:
            if candidate.starting is None:
                self._launch(candidate)
                return

    async def _start(self, candidate: Candidate) -> None:
        try:
            await candidate.backend.start(candidate.model)
        except Exception as error:
            candidate.failure = error
            if not self._has_one_engine:
                logger.error("%s cannot be served by %s: %s", self.name, candidate.engine, error)
            if not any(c.has_started for c in self.candidates if c is not candidate):
                self._launch_another()
            return
        if not self._has_one_engine:
            logger.info("%s is served by %s from now on", self.name, candidate.engine)
        first, last = self.candidates[0], self.candidates[-1]
        if self.policy.standby == "start" and first is not last and first is candidate:
            ending = asyncio.create_task(self._retire(last))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _retire(self, candidate: Candidate) -> None:
        """End an engine that is not needed now; it can be started again."""
        starting, candidate.starting = candidate.starting, None
        if starting is not None:
            starting.cancel()
            await asyncio.wait((starting,))
        candidate.failure = None
        await candidate.backend.stop(_RETIRE_DRAIN_S)

    async def _one_more_loaded(self, timeout_s: float | None = None) -> bool:
        """Wait until an engine has been loaded or has failed, or the engines have been planned.

        False if there is nothing of that to wait for.
        """
        tasks = [task for task in self._begun if not task.done()]
        if not tasks or (timeout_s is not None and timeout_s <= 0):
            return False
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)

    async def _end(self, drain_s: float) -> None:
        tasks = self._begun
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.shadow is not None:
            await self.shadow.stop()
        launched = [c.backend for c in self.candidates if c.starting is not None]
        await asyncio.gather(*(backend.stop(drain_s) for backend in launched), *self._ending)
