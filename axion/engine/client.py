"""The API process's side of an engine: submit token ids, receive token ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from axion.types import EngineInfo, EngineStats, SamplingParams, SequenceOutput


class EngineClient(Protocol):
    """An engine that turns token ids into token ids.

    `generate` raises `InvalidRequestError` or `ContextLengthExceededError` for what the engine
    cannot take and `EngineUnavailableError` when it is down, before the first output. Closing
    the iterator early aborts the sequence: its blocks are free within one engine step. If the
    engine dies while the sequence runs and nothing takes its place in time,
    `EngineUnavailableError` is raised from the iterator.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def stats(self) -> EngineStats: ...

    def generate(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        priority: int = 0,
        num_generated: int = 0,
    ) -> AsyncGenerator[SequenceOutput, None]:
        """Generate one sequence; each output holds the new tokens of one step.

        Args:
            request_id: unique among the running sequences.
            token_ids: at least one, each below the vocabulary's size.
            cache_salt: sequences share prefix-cache blocks only under the same salt.
            priority: of the sequences that wait, those with a lower one come first.
            num_generated: how many of the tokens at the end of `token_ids` were generated before,
                here or elsewhere. The sequence goes on as if it had never been interrupted:
                limits, penalties, seed and grammar are of the whole output, and log
                probabilities of the prompt are taken to be told. There is something left to
                generate.
        """
        ...
