"""An engine without a model: for testing the server, and for measuring the server's own time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator

from axion.errors import EngineUnavailableError
from axion.types import (
    BackendHealth,
    BackendState,
    EngineInfo,
    EngineStats,
    FinishReason,
    SamplingParams,
    SequenceOutput,
    TokenLogprobs,
)


class EchoEngine:
    """Gives the prompt's tokens back, one a step.

    A step computes one token for every running sequence, as a real engine's does. The answer
    ends with the prompt, or with `max_tokens`; where `min_tokens` or `ignore_eos` want more
    tokens than the prompt has, it starts over.

    Args:
        token_delay_s: time of one step, in seconds.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 2**18,
        max_model_len: int = 4096,
        token_delay_s: float = 0.0,
    ) -> None:
        self.info = EngineInfo(
            architecture=type(self).__name__,
            device="cpu",
            dtype="float32",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            num_blocks=0,
            block_size=1,
            num_parameters=0,
            weight_bytes=0,
            kv_cache_bytes=0,
            eos_token_ids=(),
        )
        self._token_delay_s = token_delay_s
        self._running: dict[str, _Running] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_steps = 0

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._running),
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_steps=self._num_steps,
        )

    def health(self) -> BackendHealth:
        state = BackendState.STOPPED if self._stopped else BackendState.READY
        return BackendHealth(state=state, info=self.info, stats=self.stats)

    async def stop(self, drain_s: float) -> None:
        self._stopped = True
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            for sequence in self._running.values():
                sequence.queue.put_nowait(None)

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
        if self._stopped:
            raise EngineUnavailableError("The engine is stopped.")
        assert request_id not in self._running, "request ids are unique"
        prompt_token_ids = token_ids[: len(token_ids) - num_generated]
        room = self.info.max_model_len - len(prompt_token_ids)
        assert room > 0 or params.max_tokens == 0, "the prompt leaves room for an answer"
        outputs = self._outputs(request_id, prompt_token_ids, params, room)
        while num_generated > 0:
            num_generated -= len(next(outputs).token_ids)
        sequence = _Running(outputs)
        self._running[request_id] = sequence
        self._num_prompt_tokens += len(prompt_token_ids)
        self._idle.clear()
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        try:
            while True:
                output = await sequence.queue.get()
                if output is None:
                    raise EngineUnavailableError("The engine was stopped.")
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._end(request_id)

    def _outputs(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams, room: int
    ) -> Iterator[SequenceOutput]:
        """What the sequence gets, step by step."""
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        num_prompt_tokens = len(prompt_token_ids)
        num_top = params.prompt_logprobs
        if num_top is not None and num_prompt_tokens > 1:
            scores = [self._logprobs(token_id, num_top) for token_id in prompt_token_ids[1:]]
            yield SequenceOutput(request_id, [], prompt_logprobs=scores)
        if limit == 0:
            yield SequenceOutput(request_id, [], finish_reason=FinishReason.LENGTH)
        for i in range(limit):
            token_id = prompt_token_ids[i % num_prompt_tokens]
            output = SequenceOutput(request_id, [token_id])
            if params.logprobs is not None:
                output.logprobs = [self._logprobs(token_id, params.logprobs)]
            may_stop = i + 1 >= params.min_tokens
            if may_stop and token_id in params.stop_token_ids:
                output.finish_reason, output.stop_token_id = FinishReason.STOP, token_id
            elif may_stop and i + 1 >= num_prompt_tokens and not params.ignore_eos:
                output.finish_reason = FinishReason.STOP
            elif i + 1 == limit:
                output.finish_reason = FinishReason.LENGTH
            yield output
            if output.finish_reason is not None:
                return

    def _logprobs(self, token_id: int, num_top: int) -> TokenLogprobs:
        """A distribution in which each following token id is half as likely."""
        half = math.log(0.5)
        vocab_size = self.info.vocab_size
        top = [((token_id + i) % vocab_size, (i + 1) * half) for i in range(num_top)]
        return TokenLogprobs(half, top)

    async def _tick(self) -> None:
        while self._running:
            await asyncio.sleep(self._token_delay_s)
            self._num_steps += 1
            for request_id, sequence in list(self._running.items()):
                output = next(sequence.outputs)
                self._num_generated_tokens += len(output.token_ids)
                sequence.queue.put_nowait(output)
                if output.finish_reason is not None:
                    self._end(request_id)
        self._ticker = None

    def _end(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        if not self._running:
            self._idle.set()


class _Running:
    """One sequence: the steps it still gets, and those its reader has not taken yet."""

    def __init__(self, outputs: Iterator[SequenceOutput]) -> None:
        self.outputs = outputs
        self.queue: asyncio.Queue[SequenceOutput | None] = asyncio.Queue()
