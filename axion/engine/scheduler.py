"""Which tokens of which sequences the next step computes.

There is no prefill phase and no decode phase. Every running sequence wants its tokens up to
`num_tokens` computed; a step hands out a token budget, oldest sequence first, and what does not
fit waits for the next one. That one rule carries chunked prefill, prefix caching and preemption.

A step can be scheduled while the one before it is being computed (`Scheduler.ahead_of`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from axion.engine.block_manager import BlockManager
from axion.engine.sequence import Sequence, SequenceStatus
from axion.types import FinishReason, SequenceOutput, TokenLogprobs


class ScheduledSequence(NamedTuple):
    """`num_scheduled_tokens` tokens from `num_computed_tokens` on are computed in this step."""

    sequence: Sequence
    num_scheduled_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's end, so that a token is sampled."""
        sequence, num_scheduled_tokens = self
        return sequence.num_computed_tokens + num_scheduled_tokens == sequence.num_tokens


class SampledToken(msgspec.Struct, frozen=True):
    """The sampler's result for one sequence; `error` when there is none.

    Attributes:
        forced: the only tokens that the sequence's grammar lets follow. They are not sampled, and
            the next step computes them all.
        is_final: the grammar lets nothing follow these.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    forced: list[int] = []
    is_final: bool = False


class Scheduler:
    """Lowest priority value first, and first come, first served among equals.

    When blocks run out, the sequence that comes last in this order is preempted.

    A preempted sequence gives its blocks back, keeps its tokens and is computed again later,
    so its output does not change.

    Args:
        max_num_seqs: sequences in one step.
        max_num_batched_tokens: token budget of one step; at least `max_num_seqs`, so that a
            step always has room for one token of every running sequence.
        max_model_len: tokens of one sequence; it must fit in the KV cache alone.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        assert block_manager.max_chunk >= max_num_batched_tokens >= max_num_seqs
        assert block_manager.max_blocks_held(max_model_len) <= block_manager.num_blocks
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.waiting: list[Sequence] = []  # in the order in which they are admitted
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_arrived = 0
        self.num_cached_tokens = 0
        self._is_ahead = False

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        self.num_arrived += 1
        sequence.arrival = self.num_arrived
        insort(self.waiting, sequence, key=_order)

    def abort(self, request_ids: Iterable[str]) -> list[Sequence]:
        """Drop sequences and free their blocks; unknown ids are fine (they have just ended)."""
        wanted = set(request_ids)
        dropped = [sequence for sequence in self if sequence.request_id in wanted]
        self._finish(dropped, FinishReason.ABORT)
        return dropped

    def schedule(self) -> list[ScheduledSequence]:
        """Hand out one step's token budget; empty only when nothing is left to do, or can be done
        ahead of the step that is being computed."""
        scheduled: list[ScheduledSequence] = []
        budget = self.max_num_batched_tokens
        preempted = False
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            if sequence.has_unknown_token and sequence.is_at_limit(self.max_model_len):
                index += 1  # it ends with the token that is still being sampled
                continue
            while not self.block_manager.grow(sequence):
                if self._is_ahead:
                    return []  # what is being computed may free blocks, and nobody need give way
                preempted = True
                position = self._preempt_last()
                if position == index:
                    break
                if position < index:  # it has a place in this step already
                    budget += scheduled.pop(position).num_scheduled_tokens
                    index -= 1
            else:
                num_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
                scheduled.append(ScheduledSequence(sequence, num_tokens))
                budget -= num_tokens
                index += 1
        # After a preemption blocks are short: admitting now would take back what was just freed.
        while self.waiting and budget and not preempted and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self.block_manager.admit(sequence):
                break
            del self.waiting[0]
            self.running.append(sequence)
            # What a preempted sequence finds again in the cache it had computed itself.
            if sequence.status is SequenceStatus.WAITING:
                sequence.num_cached_tokens = min(
                    sequence.num_computed_tokens, sequence.num_prompt_tokens
                )
                self.num_cached_tokens += sequence.num_cached_tokens
            sequence.status = SequenceStatus.RUNNING
            num_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, budget)
            scheduled.append(ScheduledSequence(sequence, num_tokens))
            budget -= num_tokens
        is_done = self._is_ahead or not self.has_unfinished
        assert scheduled or is_done, "a step that schedules nothing never ends"
        return scheduled

    @contextmanager
    def ahead_of(
        self, scheduled: list[ScheduledSequence], sampling: list[Sequence]
    ) -> Iterator[None]:
        """Schedule and launch the next step while this one is being computed.

        Within, its sequences are as `update` will leave them, but for what only its results can
        tell. The token that is sampled for the i-th of `sampling` stands at its sequence's end as
        `-1 - i`: the model runner puts the real one in its place on the device. A sequence that
        turns out to have ended is computed once more in vain. Nobody is preempted.

        Args:
            scheduled: what was launched.
            sampling: the sequences among it that sample, in order.
        """
        running = [entry for entry in scheduled if entry.sequence.status is SequenceStatus.RUNNING]
        unknown = {
            row: sequence
            for row, sequence in enumerate(sampling)
            if sequence.status is SequenceStatus.RUNNING
        }
        for entry in running:
            entry.sequence.num_computed_tokens += entry.num_scheduled_tokens
        for row, sequence in unknown.items():
            sequence.token_ids.append(-1 - row)
        self._is_ahead = True
        try:
            yield
        finally:
            self._is_ahead = False
            for sequence in unknown.values():
                sequence.token_ids.pop()
            for entry in running:
                if entry.sequence.status is SequenceStatus.RUNNING:  # it may have failed
                    entry.sequence.num_computed_tokens -= entry.num_scheduled_tokens

    def update(
        self, scheduled: list[ScheduledSequence], sampled: list[SampledToken]
    ) -> list[SequenceOutput]:
        """Book a step's results.

        Args:
            scheduled: what `schedule` returned.
            sampled: one entry for each scheduled sequence that samples, in order.
        """
        outputs: list[SequenceOutput] = []
        finished: list[Sequence] = []
        tokens = iter(sampled)
        for entry in scheduled:
            sequence, samples = entry.sequence, entry.samples
            sequence.num_computed_tokens += entry.num_scheduled_tokens
            output = SequenceOutput(
                sequence.request_id,
                [],
                num_cached_tokens=sequence.num_cached_tokens,
                prompt_logprobs=sequence.take_prompt_logprobs(),
            )
            if not samples:
                self.block_manager.advance(sequence)
                if output.prompt_logprobs is not None:
                    outputs.append(output)
                continue
            token = next(tokens)
            outputs.append(output)
            if token.error is not None:
                # Not registered: what made these logits unusable may sit in the cached keys.
                output.finish_reason, output.error = FinishReason.ERROR, token.error
                self._finish([sequence], FinishReason.ERROR)
                continue
            self.block_manager.advance(sequence)
            if sequence.params.max_tokens == 0:
                sequence.finish_reason = output.finish_reason = FinishReason.LENGTH
                finished.append(sequence)
                continue
            output.logprobs = None if token.logprobs is None else [token.logprobs]
            pending = [token.token_id, *token.forced]
            while pending and sequence.finish_reason is None:
                token_id = pending.pop(0)
                is_final = token.is_final and not pending
                sequence.append(token_id, self.max_model_len, is_final=is_final)
                output.token_ids.append(token_id)
            if sequence.finish_reason is not None:
                output.finish_reason = sequence.finish_reason
                if sequence.finish_reason is FinishReason.STOP and not is_final:
                    output.stop_token_id = token_id
                finished.append(sequence)
        for sequence in finished:
            assert sequence.finish_reason is not None
            self._finish([sequence], sequence.finish_reason)
        return outputs

    def fail(self, scheduled: list[ScheduledSequence], error: str) -> list[SequenceOutput]:
        """End every sequence of a step that could not be computed; the others go on."""
        sequences = [
            entry.sequence
            for entry in scheduled
            if entry.sequence.status is SequenceStatus.RUNNING  # it may have ended meanwhile
        ]
        self._finish(sequences, FinishReason.ERROR)
        return [
            SequenceOutput(sequence.request_id, [], finish_reason=FinishReason.ERROR, error=error)
            for sequence in sequences
        ]

    def check_integrity(self) -> None:
        assert all(not sequence.block_tables for sequence in self.waiting)
        self.block_manager.check_integrity(self.running)

    def _preempt_last(self) -> int:
        """Send the running sequence that comes last back to wait; where it was in `running`."""
        sequence = max(self.running, key=_order)
        position = self.running.index(sequence)
        del self.running[position]
        self.block_manager.free(sequence)
        sequence.status = SequenceStatus.PREEMPTED
        insort(self.waiting, sequence, key=_order)
        self.num_preemptions += 1
        return position

    def _finish(self, sequences: list[Sequence], reason: FinishReason) -> None:
        for sequence in sequences:
            if sequence.status is SequenceStatus.RUNNING:
                self.running.remove(sequence)
                self.block_manager.free(sequence)
            else:
                self.waiting.remove(sequence)
            sequence.status = SequenceStatus.FINISHED
            sequence.finish_reason = reason


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival
