"""The native engine in a process of its own; its sequences go on in the next one."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import ClassVar

import msgspec

from axion.backends.worker import Worker
from axion.engine.messages import (
    AddRequest,
    EngineFailed,
    EngineReady,
    LoadProgress,
    Start,
    StepOutputs,
    decode_from_engine,
)
from axion.errors import EngineUnavailableError, InternalError, ModelLoadError
from axion.types import (
    BackendHealth,
    BackendState,
    EngineConfig,
    EngineInfo,
    EngineStats,
    FinishReason,
    SamplingParams,
    SequenceOutput,
)

# A sequence that has got so much further is not what ended the process before.
_PROVEN_TOKENS = 4


async def spawn_engine(
    config: EngineConfig, on_progress: Callable[[int, int], None] | None = None
) -> WorkerEngine:
    """Start an engine process and wait until its model is loaded.

    Args:
        on_progress: called with (bytes read, bytes in all) while the weights load.

    Raises:
        ModelLoadError: the model cannot be served; the message says why.
    """
    engine = WorkerEngine(config, on_progress)
    await engine.start()
    return engine


class WorkerEngine(Worker[SequenceOutput]):
    """An `EngineClient` whose engine lives in a child process.

    Attributes:
        MAX_RESUMES: new processes that a sequence is given without getting further.
    """

    MAX_RESUMES: ClassVar[int] = 2

    module = "axion.engine.process"
    title = "engine process"
    logger = logging.getLogger("axion.engine")

    def __init__(
        self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__()
        self._config = config
        self._on_progress = on_progress or (lambda done, total: None)
        self._info: EngineInfo | None = None
        self._turn = asyncio.Lock()
        self._stats = EngineStats()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailableError(self.detail)
        return self._info

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def health(self) -> BackendHealth:
        return BackendHealth(
            state=self.state,
            detail=self.detail,
            info=self._info,
            stats=self._stats,
            returns_soon=self.returns_soon,
            restarts=self.restarts,
        )

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        priority: int = 0,
        num_generated: int = 0,
    ) -> AsyncGenerator[SequenceOutput, None]:
        """As `EngineClient` says; a sequence that outlives the process goes on in the next one.

        One that comes while there is none waits for it as well.

        What ended the process may be one of the sequences in it. So none is taken up more than
        `MAX_RESUMES` times without getting further, and the last time only one by one: that
        tells those that were beside the guilty one from itself.
        """
        if params.seed is None:  # drawn here, so that every life goes on with the same stream
            params = msgspec.structs.replace(params, seed=secrets.randbits(63))
        sequence = _Progress(list(token_ids), num_generated)
        num_deaths = 0
        while True:
            sequence.begin_life()
            async with AsyncExitStack() as turn:
                if num_deaths or self.state is BackendState.DOWN:
                    await self._come_back(turn, alone=num_deaths == self.MAX_RESUMES)
                message = AddRequest(
                    request_id,
                    sequence.token_ids,
                    params,
                    cache_salt,
                    priority,
                    sequence.num_generated,
                )
                with self.request(request_id, message) as outputs:
                    while not outputs.finished:
                        try:
                            output = await outputs.next()
                        except EngineUnavailableError:
                            break
                        outputs.finished = output.finish_reason is not None
                        if output.finish_reason is FinishReason.ERROR:
                            raise InternalError(output.error or "The engine could not go on.")
                        sequence.take(output)
                        if sequence.is_proven:
                            await turn.aclose()
                        yield output
                        if outputs.finished:
                            return
            num_deaths = 1 if sequence.is_proven else num_deaths + 1
            if num_deaths > self.MAX_RESUMES and self.state is not BackendState.STOPPED:
                raise EngineUnavailableError(
                    f"The {self.title} ended {num_deaths} times while it computed this request."
                )

    async def _come_back(self, turn: AsyncExitStack, *, alone: bool) -> None:
        """Wait for the next process.

        Args:
            alone: wait also until no other sequence that asks for this has the turn; then have
                it, until `turn` is closed.

        Raises:
            EngineUnavailableError: it took too long.
        """
        try:
            async with asyncio.timeout(self.MAX_PAUSE_S):
                if alone:
                    await turn.enter_async_context(self._turn)
                await self.until_back()
        except TimeoutError:
            raise self.unavailable() from None

    def first_message(self) -> Start:
        return Start(self._config)

    def take(self, frame: bytes) -> None:
        match decode_from_engine(frame):
            case StepOutputs(outputs, stats):
                self._stats = stats
                for output in outputs:
                    self.deliver(output.request_id, output)
            case LoadProgress(num_bytes_done, num_bytes_total):
                self._on_progress(num_bytes_done, num_bytes_total)
            case EngineReady(info):
                self._info = info
                self.become_ready()
            case EngineFailed(message):
                raise ModelLoadError(message)

    def reset(self) -> None:
        self._stats = EngineStats()


class _Progress:
    """A sequence that may need several processes, and what its client has been told of it.

    Args:
        token_ids: prompt and output; what is generated is added.
        num_generated: tokens of the output.
    """

    def __init__(self, token_ids: list[int], num_generated: int) -> None:
        self.token_ids = token_ids
        self.num_generated = num_generated
        self._num_cached_tokens: int | None = None
        self._num_scores_told = 0  # log probabilities of the prompt
        self.begin_life()

    def begin_life(self) -> None:
        """From here on it is another process that computes the sequence."""
        self._num_before = self.num_generated
        self._num_scores = 0

    @property
    def is_proven(self) -> bool:
        """Whether this process has got so far with it that it is not to blame if it ends."""
        return self.num_generated - self._num_before >= _PROVEN_TOKENS

    def take(self, output: SequenceOutput) -> None:
        """Note an output, and take from it what has been told before."""
        self.token_ids += output.token_ids
        self.num_generated += len(output.token_ids)
        scores = output.prompt_logprobs or []
        output.prompt_logprobs = scores[max(0, self._num_scores_told - self._num_scores) :] or None
        self._num_scores += len(scores)
        self._num_scores_told = max(self._num_scores_told, self._num_scores)
        if output.token_ids and self._num_cached_tokens is None:
            self._num_cached_tokens = output.num_cached_tokens
        if self._num_cached_tokens is not None:
            output.num_cached_tokens = self._num_cached_tokens
