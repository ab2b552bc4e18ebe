"""Turns what the scheduler decided into tensors, runs the model on them and samples."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from axion.engine import state_cache
from axion.engine.batch_invariant import BatchInvariantModel
from axion.engine.cuda_graph import CudaGraphRunner
from axion.engine.host_memory import HostMemory
from axion.engine.recorded_steps import RecordedSteps
from axion.engine.sampler import UNUSABLE_LOGITS, LogprobTensors, Sampler, Samples
from axion.engine.sequence import Sequence, SequenceState
from axion.engine.step import SampledToken, ScheduledSequence
from axion.engine.structured import TokenMask
from axion.layers.context import ForwardContext, KVCache, State
from axion.layers.transfer import Readback, pack_to_device, to_device
from axion.models.base import CausalLM
from axion.types import SamplingParams

# Logits of a long prompt are computed in pieces of at most so many numbers (64 MiB of float32).
_MAX_LOGITS = 2**24
# Tokens of a prompt that is computed before there is one.
_WARM_UP = 20


class Chunk(NamedTuple):
    """Tokens of a sequence, or guesses at these, that are computed from position `start` on."""

    sequence: Sequence
    start: int
    token_ids: list[int]


class StepResults(NamedTuple):
    """What came of a step.

    Attributes:
        sampled: for each sequence that samples the next token, and those that would follow if its
            drafts were right.
        errors: of sequences that do not sample and cannot go on, by request id.
    """

    sampled: list[list[SampledToken]]
    errors: dict[str, str]


class LaunchedStep:
    """A step that the device was given to compute, and may not have finished.

    Attributes:
        scheduled: what is computed.
        sampling: of it what reaches the end of its sequence, in order.
        started: when it was launched, in seconds of `time.perf_counter`.
    """

    def __init__(
        self,
        scheduled: list[ScheduledSequence],
        sampling: list[ScheduledSequence],
        samples: Samples | None,
        chunks_are_usable: Readback | None,
        prompt_logprobs: list[tuple[Sequence, LogprobTensors]],
        started: float,
    ) -> None:
        self.scheduled = scheduled
        self.sampling = sampling
        self.started = started
        # As it was: the next step may be launched before this one is collected.
        self._num_rows = [entry.num_rows for entry in sampling]
        self._chunks = [entry for entry in scheduled if not entry.samples]
        self._samples = samples
        self._chunks_are_usable = chunks_are_usable
        self._prompt_logprobs = prompt_logprobs

    def collect(self) -> StepResults:
        """Wait for the step; log probabilities of a prompt that wants them go to its sequence."""
        for sequence, logprobs in self._prompt_logprobs:
            entries = logprobs.read()
            sequence.prompt_logprobs += entries
            sequence.num_prompt_logprobs += len(entries)
        tokens = iter([] if self._samples is None else self._samples.read())
        sampled = [list(islice(tokens, num_rows)) for num_rows in self._num_rows]
        errors: dict[str, str] = {}
        if self._chunks_are_usable is not None:
            [usable] = self._chunks_are_usable.wait()
            for entry, is_usable in zip(self._chunks, usable.tolist(), strict=True):
                if not is_usable:
                    errors[entry.sequence.request_id] = UNUSABLE_LOGITS
        return StepResults(sampled, errors)


class ModelRunner:
    """Runs one model over a paged KV cache.

    Args:
        kv_caches: one a layer, on the model's device.
        states: the same, of a model that keeps any.
        graphs: compute the steps that they fit; None: the model computes all.
        host_memory: what is to be copied from the device and to it, before the model computes.
    """

    def __init__(
        self,
        model: CausalLM | BatchInvariantModel,
        kv_caches: list[KVCache],
        states: list[State],
        *,
        block_size: int,
        device: torch.device,
        graphs: CudaGraphRunner | RecordedSteps | None = None,
        host_memory: list[HostMemory] | None = None,
    ) -> None:
        self.model = model
        self.kv_caches = kv_caches
        self.states = states
        self.graphs = graphs
        self.host_memory = host_memory or []
        self.block_size = block_size
        self.device = device
        self.sampler = Sampler(device, model.config.vocab_size)
        self._samples: Samples | None = None  # of the last step

    @torch.inference_mode()
    def launch(
        self,
        scheduled: list[ScheduledSequence],
        mask: Callable[[list[ScheduledSequence]], TokenMask | None] = lambda _: None,
    ) -> LaunchedStep:
        """Give one step to the device, and wait for nothing that it computes.

        A token that the step before it samples, and that the host does not know yet, is taken from
        there; see `Scheduler.ahead_of`.

        Args:
            mask: computes that of the sequences that sample, while a GPU runs the model.
        """
        started = time.perf_counter()
        chunks = [Chunk(e.sequence, e.sequence.num_computed_tokens, e.token_ids) for e in scheduled]
        ends = accumulate(len(chunk.token_ids) for chunk in chunks)
        rows: list[int] = []
        chunk_ends: list[int] = []
        for entry, end in zip(scheduled, ends, strict=True):
            rows += range(end - entry.num_rows, end)
            if not entry.samples:
                chunk_ends.append(end - 1)
        hidden_states, sample_rows = self.forward(chunks, rows + chunk_ends)
        chunks_are_usable = None
        if chunk_ends:
            # What is not a number stays in the cache, and makes all that follows unusable: known
            # now, nobody finds it there.
            sample_rows, chunk_rows = sample_rows.split([len(rows), len(chunk_ends)])
            chunks_are_usable = Readback(hidden_states[chunk_rows].isfinite().all(-1))
        prompt_logprobs = self._score_prompts(hidden_states, scheduled)
        self._samples = None
        sampling = [entry for entry in scheduled if entry.samples]
        if sampling:
            self._samples = self.sampler(
                self.model.compute_logits(hidden_states[sample_rows]),
                [entry.sequence for entry in sampling for _ in range(entry.num_rows)],
                mask(sampling),
                [entry.draft_token_ids[:i] for entry in sampling for i in range(entry.num_rows)],
            )
        return LaunchedStep(
            scheduled, sampling, self._samples, chunks_are_usable, prompt_logprobs, started
        )

    def warm_up(self) -> None:
        """Compute a prompt and two tokens after it that nobody asked for, in blocks that nobody
        uses yet: a step that decodes may be recorded and replayed."""
        sequence = Sequence("", [0] * _WARM_UP, SamplingParams(temperature=0), seed=0)
        sequence.arrival = -1  # as no other
        num_groups = 1 + max((cache.group for cache in self.kv_caches), default=0)
        num_blocks = -(-(_WARM_UP + 2) // self.block_size)
        sequence.block_tables = [array("q", [0] * num_blocks) for _ in range(num_groups)]
        if self.states:
            sequence.state = SequenceState(slot=1)
        for num_tokens in (_WARM_UP, 1, 1):
            self.launch([ScheduledSequence(sequence, num_tokens, [])]).collect()
            sequence.num_computed_tokens += num_tokens
            sequence.token_ids.append(0)
            if sequence.state is not None:
                sequence.state.source = sequence.state.slot

    def forward(self, chunks: list[Chunk], rows: list[int]) -> tuple[Tensor, Tensor]:
        """Hidden states `[num_tokens, hidden_size]` of the chunks' tokens, one after another, and
        `rows` on the device."""
        for memory in self.host_memory:
            memory.move()
        input_ids, rows_on_device, context = self._prepare(chunks, rows)
        is_replayed = self.graphs is not None and self.graphs.fits(context)
        compute = self.graphs if is_replayed else self.model
        return compute(input_ids, context), rows_on_device

    def _score_prompts(
        self, hidden_states: Tensor, scheduled: list[ScheduledSequence]
    ) -> list[tuple[Sequence, LogprobTensors]]:
        scored = []
        max_rows = max(1, _MAX_LOGITS // self.model.config.vocab_size)
        first_row = 0
        for sequence, num_scheduled_tokens, drafts in scheduled:
            if sequence.scores_prompt:
                offset = first_row - sequence.num_computed_tokens
                # The row of position p predicts the prompt's token p + 1. After a preemption
                # positions come again, and those whose result is out are left out.
                start = max(sequence.num_computed_tokens, sequence.num_prompt_logprobs)
                end = min(
                    sequence.num_computed_tokens + num_scheduled_tokens,
                    sequence.num_prompt_tokens - 1,
                )
                for piece in range(start, end, max_rows):
                    last = min(piece + max_rows, end)
                    logits = self.model.compute_logits(
                        hidden_states[offset + piece : offset + last]
                    )
                    targets = np.array(sequence.token_ids[piece + 1 : last + 1])
                    logprobs = LogprobTensors(
                        logits.float(),
                        to_device(targets, self.device),
                        sequence.params.prompt_logprobs,
                        ranked=True,
                    )
                    scored.append((sequence, logprobs))
            first_row += num_scheduled_tokens + len(drafts)
        return scored

    def _prepare(
        self, chunks: list[Chunk], sample_rows: list[int]
    ) -> tuple[Tensor, Tensor, ForwardContext]:
        """The tokens, `sample_rows`, and all that attention needs, on the device."""
        query_lens = [len(chunk.token_ids) for chunk in chunks]
        starts = [chunk.start for chunk in chunks]
        context_lens = [start + count for start, count in zip(starts, query_lens, strict=True)]
        num_blocks = [-(-length // self.block_size) for length in context_lens]

        token_ids: list[int] = []
        num_groups = len(chunks[0].sequence.block_tables)
        block_tables = np.zeros((num_groups, len(chunks), max(num_blocks)), np.int64)
        for row, chunk in enumerate(chunks):
            token_ids += chunk.token_ids
            for group, table in enumerate(chunk.sequence.block_tables):
                block_tables[group, row, : num_blocks[row]] = table[: num_blocks[row]]

        counts = np.array(query_lens)
        rows = np.arange(len(chunks)).repeat(counts)
        # Position of a token = start of its chunk + its distance from the chunk's first row.
        first_rows = counts.cumsum() - counts
        positions = np.arange(len(token_ids)) + (np.array(starts) - first_rows)[rows]
        blocks = block_tables[:, rows, positions // self.block_size]
        num_prompt_tokens = np.array([chunk.sequence.num_prompt_tokens for chunk in chunks])
        (
            input_ids,
            rows_to_sample,
            positions,
            rope_lengths,
            slot_mapping,
            block_tables,
            lengths,
        ) = pack_to_device(
            [
                np.array(token_ids),
                np.array(sample_rows, np.int64),
                positions,
                np.maximum(num_prompt_tokens[rows], positions + 1),
                blocks * self.block_size + positions % self.block_size,
                block_tables,
                np.array(context_lens),
            ],
            self.device,
        )
        context = ForwardContext(
            positions=positions,
            rope_lengths=rope_lengths,
            slot_mapping=slot_mapping,
            block_tables=block_tables,
            context_lens=lengths,
            query_lens=query_lens,
            context_lens_list=context_lens,
            kv_caches=self.kv_caches,
            block_size=self.block_size,
            states=self.states,
            state_runs=[
                run
                for chunk, row, start, end in zip(
                    chunks, first_rows.tolist(), starts, context_lens, strict=True
                )
                if chunk.sequence.state is not None
                for run in state_cache.runs(chunk.sequence.state, row, start, end)
            ],
        )
        if min(token_ids) < 0:
            assert self._samples is not None
            sampled = self._samples.token_ids[(-1 - input_ids).clamp(min=0)]
            input_ids = torch.where(input_ids < 0, sampled, input_ids)
        return input_ids, rows_to_sample, context
