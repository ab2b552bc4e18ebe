"""Which tokens of which sequences the next step computes.

There is no prefill phase and no decode phase. Every running sequence wants its tokens up to
`num_tokens` computed; a step hands out a token budget, lowest priority value and oldest sequence
first, and what does not fit waits for the next one. That one rule carries chunked prefill, prefix
caching, preemption and speculation: a step may compute guessed tokens beyond `num_tokens`, and
those that are wrong are not counted as computed.

A step can be scheduled while the one before it is being computed (`Scheduler.ahead_of`).
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from types import MappingProxyType

from axion.engine.block_manager import BlockManager
from axion.engine.sequence import Sequence, SequenceStatus
from axion.engine.speculative import Price, Proposer
from axion.engine.step import SampledToken, ScheduledSequence
from axion.engine.step_time import StepTimeModel
from axion.types import QUEUE_TIME_BUCKETS, FinishReason, SequenceOutput, TokenLogprobs

# Prompt tokens that a step computes at least beside running streams, however short it should be.
_MIN_CHUNK = 32
# Steps without want of memory after which they may be twice as large again; twice as many for each
# time that a sequence has lost its state.
_CALM_STEPS = 64

_DOES_NOT_FIT = (
    "There is not enough memory to compute this request, even alone. Send a shorter one, or give "
    "the KV cache less (KV_CACHE_GIB, MEMORY_FRACTION), which leaves more to compute with."
)


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
        target_itl_s: seconds that a step should take at most while sequences decode in it, so that
            chunks of prompts are made small enough; None: they take the whole budget.
        clock: seconds, for how long sequences wait.

    Attributes:
        running: in the order in which they get tokens.
        queue_times: sequences by the time that they waited, for each of `QUEUE_TIME_BUCKETS` and
            above the last.
        queue_seconds: sum of these times.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        target_itl_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert block_manager.max_chunk >= max_num_batched_tokens >= max_num_seqs
        assert block_manager.max_blocks_held(max_model_len) <= block_manager.num_blocks
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.target_itl_s = target_itl_s
        self.waiting: list[Sequence] = []  # in the order in which they are admitted
        self.running: list[Sequence] = []
        self.step_time = StepTimeModel()
        self.num_preemptions = 0
        self.num_arrived = 0
        self.num_cached_tokens = 0
        self._is_ahead = False
        self.draft_price = Price()
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_out_of_memory = 0
        self.queue_times = [0] * (len(QUEUE_TIME_BUCKETS) + 1)
        self.queue_seconds = 0.0
        self._clock = clock
        self._max_step_tokens = max_num_batched_tokens  # less for a while after want of memory
        self._num_calm_steps = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.running
        yield from self.waiting

    def add(self, sequence: Sequence) -> None:
        self.num_arrived += 1
        sequence.arrival = self.num_arrived
        sequence.arrived_s = self._clock()
        insort(self.waiting, sequence, key=_order)

    def abort(self, request_ids: Iterable[str]) -> list[Sequence]:
        """Drop sequences and free their blocks; unknown ids are fine (they have just ended)."""
        wanted = set(request_ids)
        dropped = [sequence for sequence in self if sequence.request_id in wanted]
        self._finish(dropped, FinishReason.ABORT)
        return dropped

    def schedule(self) -> list[ScheduledSequence]:
        """Hand out one step's token budget; empty only when nothing is left to do, or can be done
        ahead of the step that is being computed.

        A chunk leaves one token for each running sequence that comes behind it.
        """
        scheduled: list[ScheduledSequence] = []
        budget = self._token_budget()
        may_admit = bool(self.waiting)
        index = 0
        while budget:
            if may_admit and self._waits_before(index):
                may_admit = budget > len(self.running) - index and self._admit(index)
                continue
            if index == len(self.running):
                break
            sequence = self.running[index]
            if sequence.has_unknown_token and sequence.is_at_limit(self.max_model_len):
                index += 1  # it ends with the token that is still being sampled
                continue
            while not self.block_manager.grow(sequence, sequence.num_tokens):
                if self._is_ahead:
                    return []  # what is being computed may free blocks, and nobody need give way
                # Blocks are short: admitting now would take back what is freed here.
                may_admit = False
                if self._preempt_last() is sequence:
                    break
            else:
                index += 1
                room = budget - (len(self.running) - index)
                num_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, room)
                scheduled.append(ScheduledSequence(sequence, num_tokens, []))
                budget -= num_tokens
        is_done = self._is_ahead or not self.has_unfinished
        assert scheduled or is_done, "a step that schedules nothing never ends"
        return scheduled

    @contextmanager
    def ahead_of(
        self, scheduled: list[ScheduledSequence], sampling: list[ScheduledSequence]
    ) -> Iterator[None]:
        """Schedule and launch the next step while this one is being computed.

        Within, its sequences are as `update` will leave them, but for what only its results can
        tell. The token that is sampled for the i-th of `sampling` stands at its sequence's end as
        `-1 - i`: the model runner puts the real one in its place on the device. A sequence that
        turns out to have ended is computed once more in vain. Nobody is preempted.

        Args:
            scheduled: what was launched, without drafts.
            sampling: of it what samples, in order.
        """
        running = [entry for entry in scheduled if entry.sequence.status is SequenceStatus.RUNNING]
        unknown = {
            row: entry.sequence
            for row, entry in enumerate(sampling)
            if entry.sequence.status is SequenceStatus.RUNNING
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

    def speculate(
        self, scheduled: list[ScheduledSequence], proposer: Proposer
    ) -> list[ScheduledSequence]:
        """Add drafts to what `schedule` returned, where budget and blocks are left for them."""
        budget = self._token_budget() - sum(e.num_scheduled_tokens for e in scheduled)
        limits: list[int] = []
        for entry in scheduled:
            sequence = entry.sequence
            limit = 0
            if entry.samples and not sequence.scores_prompt:
                limit = min(sequence.pace.limit(), budget, self._num_wanted(sequence) - 1)
                if limit <= 0 or not self.block_manager.grow(sequence, sequence.num_tokens + limit):
                    limit = 0
            limits.append(limit)
            budget -= limit
        with_drafts: list[ScheduledSequence] = []
        proposed = proposer.propose(scheduled, limits)
        for entry, limit, draft_token_ids in zip(scheduled, limits, proposed, strict=True):
            sequence = entry.sequence
            if draft_token_ids:
                draft_token_ids = _usable(draft_token_ids, sequence)
            if len(draft_token_ids) < limit:
                self.block_manager.shrink(sequence, sequence.num_tokens + len(draft_token_ids))
            if draft_token_ids:
                entry = entry._replace(draft_token_ids=draft_token_ids)
            with_drafts.append(entry)
        return with_drafts

    def _num_wanted(self, sequence: Sequence) -> int:
        """Tokens that may still be generated."""
        num_left = self.max_model_len - sequence.num_tokens
        max_tokens = sequence.params.max_tokens
        if max_tokens is None:
            return num_left
        return min(num_left, max_tokens - sequence.num_output_tokens)

    def observe(self, scheduled: list[ScheduledSequence], seconds: float) -> None:
        """Learn from the time that a step took; called before it is booked.

        Only from a step in which sequences decode: that is what is predicted, and it has waited
        for the device.
        """
        self.draft_price.book(scheduled, seconds)
        if self.target_itl_s is not None and any(_decodes(entry.sequence) for entry in scheduled):
            num_tokens = sum(len(entry.token_ids) for entry in scheduled)
            self.step_time.observe(len(scheduled), num_tokens, seconds)

    def update(
        self,
        scheduled: list[ScheduledSequence],
        sampled: list[list[SampledToken]],
        errors: Mapping[str, str] = MappingProxyType({}),
    ) -> list[SequenceOutput]:
        """Book a step's results.

        Args:
            scheduled: what was computed.
            sampled: what each scheduled sequence that samples goes on with, in order; of one with
                drafts that may be nothing.
            errors: why sequences that do not sample yet cannot go on, by request id.
        """
        if self._max_step_tokens < self.max_num_batched_tokens:
            self._grow_steps()
        outputs: list[SequenceOutput] = []
        finished: list[Sequence] = []
        results = iter(sampled)
        price = self.draft_price.of(len(scheduled))
        for entry in scheduled:
            sequence, samples = entry.sequence, entry.samples
            output = SequenceOutput(
                sequence.request_id,
                [],
                num_cached_tokens=sequence.num_cached_tokens,
                prompt_logprobs=sequence.take_prompt_logprobs(),
            )
            tokens = next(results) if samples else []
            error = tokens[0].error if tokens else errors.get(sequence.request_id)
            if error is not None:
                # What made these numbers unusable may sit in cached keys.
                output.finish_reason, output.error = FinishReason.ERROR, error
                outputs.append(output)
                self.block_manager.discard(sequence)
                self._finish([sequence], FinishReason.ERROR)
                continue
            if not samples:
                sequence.num_computed_tokens = entry.end
                self.block_manager.advance(sequence)
                if output.prompt_logprobs is not None:
                    outputs.append(output)
                continue
            self._append(sequence, tokens, output)
            num_accepted = self._book_computed(entry, output.token_ids)
            if num_drafts := len(entry.draft_token_ids):
                self.num_draft_tokens += num_drafts
                self.num_accepted_tokens += num_accepted
                sequence.pace.book(num_drafts, num_accepted, price)
                if not tokens:
                    sequence.pace.rest()
            if sequence.finish_reason is not None:
                output.finish_reason = sequence.finish_reason
                finished.append(sequence)
            if output.token_ids or output.finish_reason is not None:
                outputs.append(output)
        for sequence in finished:
            assert sequence.finish_reason is not None
            self._finish([sequence], sequence.finish_reason)
        return outputs

    def _append(
        self, sequence: Sequence, tokens: list[SampledToken], output: SequenceOutput
    ) -> None:
        """Add tokens up to the one that ends the sequence, if one does."""
        if sequence.params.max_tokens == 0:
            sequence.finish_reason = FinishReason.LENGTH
            return
        logprobs: list[TokenLogprobs] = []
        for token in tokens:
            if token.error is not None:
                sequence.finish_reason, output.error = FinishReason.ERROR, token.error
                break
            if token.logprobs is not None:
                logprobs.append(token.logprobs)
            pending = [token.token_id, *token.forced]
            while pending and sequence.finish_reason is None:
                token_id = pending.pop(0)
                is_final = token.is_final and not pending
                sequence.append(token_id, self.max_model_len, is_final=is_final)
                output.token_ids.append(token_id)
            if sequence.finish_reason is not None:
                if sequence.finish_reason is FinishReason.STOP and not is_final:
                    output.stop_token_id = token_id
                break
        output.logprobs = logprobs or None

    def _book_computed(self, entry: ScheduledSequence, appended: list[int]) -> int:
        """Count what the step has computed of a sequence, drafts that came true among it; how
        many did."""
        sequence, drafts = entry.sequence, entry.draft_token_ids
        num_accepted = 0
        for draft, token_id in zip(drafts, appended, strict=False):
            if draft != token_id:
                break
            num_accepted += 1
        num_computed = sequence.num_tokens - len(appended) + num_accepted
        if sequence.finish_reason is None:
            # Sampling needs the logits behind the last token, which no row gave that counts.
            num_computed = min(num_computed, sequence.num_tokens - 1)
        sequence.num_computed_tokens = num_computed
        self.block_manager.advance(sequence)
        if drafts:
            self.block_manager.shrink(sequence, sequence.num_tokens)
        return num_accepted

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

    def retreat(self, scheduled: list[ScheduledSequence]) -> list[SequenceOutput]:
        """Have a step that found too little memory computed again in smaller ones.

        The next steps are half as large, until some have succeeded, and the sequences that have no
        token in them are preempted, the last in order first; so are those whose recurrent state is
        spoilt. These begin anew, and steps stay small for longer each time, so that in the end they
        come past the place, or not even one token can be computed there. A single token that does
        not fit, without drafts, ends its sequence.
        """
        self.num_out_of_memory += 1
        self._num_calm_steps = 0
        num_tokens = sum(entry.num_scheduled_tokens for entry in scheduled)
        # Some layers may have carried its state on, and others not.
        spoilt = [
            entry.sequence
            for entry in scheduled
            if (state := entry.sequence.state) is not None and state.source == state.slot
        ]
        # With a state there are no drafts to leave out.
        if num_tokens == 1 and (spoilt or self._max_step_tokens == 1):
            return self.fail(scheduled, _DOES_NOT_FIT)
        self._max_step_tokens = max(1, num_tokens // 2)
        for entry in scheduled:
            self.block_manager.shrink(entry.sequence, entry.sequence.num_tokens)
        for sequence in spoilt:
            sequence.num_lost_states += 1
            self._preempt(sequence)
        while len(self.running) > self._max_step_tokens:
            self._preempt_last()
        return []

    def check_integrity(self) -> None:
        assert self.running == sorted(self.running, key=_order)
        assert all(not sequence.block_tables for sequence in self.waiting)
        self.block_manager.check_integrity(self.running)

    def _grow_steps(self) -> None:
        """Make steps twice as large when enough of them have succeeded."""
        self._num_calm_steps += 1
        most_lost = max((sequence.num_lost_states for sequence in self), default=0)
        if self._num_calm_steps >= _CALM_STEPS << most_lost:
            self._num_calm_steps = 0
            self._max_step_tokens = min(2 * self._max_step_tokens, self.max_num_batched_tokens)

    def _token_budget(self) -> int:
        """Tokens of the next step: fewer where a running stream would wait too long for it."""
        if self.target_itl_s is None or not any(map(_decodes, self.running)):
            return self._max_step_tokens
        num_seqs = len(self.running)
        num_tokens = self.step_time.num_tokens_within(self.target_itl_s, num_seqs)
        return min(max(num_tokens, num_seqs + _MIN_CHUNK), self._max_step_tokens)

    def _waits_before(self, index: int) -> bool:
        """Whether a sequence waits that there is a place for, and that comes before `running`'s."""
        if not self.waiting or len(self.running) >= min(self.max_num_seqs, self._max_step_tokens):
            return False
        return index == len(self.running) or (_order(self.waiting[0]) < _order(self.running[index]))

    def _admit(self, index: int) -> bool:
        """Let the first that waits run in this place; False if there are no blocks for it."""
        sequence = self.waiting[0]
        if not self.block_manager.admit(sequence):
            return False
        del self.waiting[0]
        self.running.insert(index, sequence)
        # What a preempted sequence finds again in the cache it had computed itself.
        if sequence.status is SequenceStatus.WAITING:
            sequence.num_cached_tokens = min(
                sequence.num_computed_tokens, sequence.num_prompt_tokens
            )
            self.num_cached_tokens += sequence.num_cached_tokens
            waited = self._clock() - sequence.arrived_s
            self.queue_times[bisect_left(QUEUE_TIME_BUCKETS, waited)] += 1
            self.queue_seconds += waited
        sequence.status = SequenceStatus.RUNNING
        return True

    def _preempt_last(self) -> Sequence:
        """Send the running sequence that comes last back to wait."""
        return self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> Sequence:
        self.running.remove(sequence)
        self.block_manager.free(sequence)
        sequence.status = SequenceStatus.PREEMPTED
        insort(self.waiting, sequence, key=_order)
        self.num_preemptions += 1
        return sequence

    def _finish(self, sequences: list[Sequence], reason: FinishReason) -> None:
        for sequence in sequences:
            if sequence.status is SequenceStatus.RUNNING:
                self.running.remove(sequence)
                self.block_manager.free(sequence)
            else:
                self.waiting.remove(sequence)
            sequence.status = SequenceStatus.FINISHED
            sequence.finish_reason = reason


def _usable(draft_token_ids: list[int], sequence: Sequence) -> list[int]:
    """The drafts that can come true together, and do not end the sequence."""
    stops = sequence.stop_token_ids
    usable = list(takewhile(lambda token_id: token_id not in stops, draft_token_ids))
    if sequence.matcher is not None:
        del usable[sequence.matcher.validate_tokens(usable) :]
    return usable


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.arrival


def _decodes(sequence: Sequence) -> bool:
    """Whether a client reads its tokens as they are sampled, one a step."""
    return sequence.num_tokens > sequence.num_computed_tokens >= sequence.num_prompt_tokens
