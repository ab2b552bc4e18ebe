"""Turns what the scheduler decided into tensors, runs the model on them and samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from axion.engine import state_cache
from axion.engine.batch_invariant import BatchInvariantModel
from axion.engine.sampler import Sampler, token_logprobs
from axion.engine.scheduler import SampledToken, ScheduledSequence
from axion.engine.sequence import Sequence
from axion.engine.structured import TokenMask
from axion.layers.context import ForwardContext, KVCache, State
from axion.models.base import CausalLM

# Logits of a long prompt are computed in pieces of at most so many numbers (64 MiB of float32).
_MAX_LOGITS = 2**24


class Chunk(NamedTuple):
    """Tokens of a sequence, or guesses at these, that are computed from position `start` on."""

    sequence: Sequence
    start: int
    token_ids: list[int]


class ModelRunner:
    """Runs one model over a paged KV cache.

    Args:
        kv_caches: one a layer, on the model's device.
        states: the same, of a model that keeps any.
    """

    def __init__(
        self,
        model: CausalLM | BatchInvariantModel,
        kv_caches: list[KVCache],
        states: list[State],
        *,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.kv_caches = kv_caches
        self.states = states
        self.block_size = block_size
        self.device = device
        self.sampler = Sampler(device, model.config.vocab_size)

    @torch.inference_mode()
    def execute(
        self,
        scheduled: list[ScheduledSequence],
        mask: Callable[[list[ScheduledSequence]], TokenMask | None] = lambda _: None,
    ) -> list[list[SampledToken]]:
        """Compute one step; log probabilities of a prompt that wants them go to its sequence.

        Args:
            mask: computes that of the sequences that sample, while a GPU runs the model.

        Returns:
            For each scheduled sequence whose end the step reaches, in order, the next token, and
            those that would follow if its drafts were right.
        """
        hidden_states, context = self.forward(
            [Chunk(e.sequence, e.sequence.num_computed_tokens, e.token_ids) for e in scheduled]
        )
        self._score_prompts(hidden_states, scheduled)
        sampling = [entry for entry in scheduled if entry.samples]
        if not sampling:
            return []
        rows: list[int] = []
        for entry, end in zip(scheduled, accumulate(context.query_lens), strict=True):
            rows += range(end - entry.num_rows, end)
        logits = self.model.compute_logits(hidden_states[self._to_device(np.array(rows))])
        tokens = iter(
            self.sampler(
                logits,
                [entry.sequence for entry in sampling for _ in range(entry.num_rows)],
                mask(sampling),
                [entry.draft_token_ids[:i] for entry in sampling for i in range(entry.num_rows)],
            )
        )
        return [list(islice(tokens, entry.num_rows)) for entry in sampling]

    def forward(self, chunks: list[Chunk]) -> tuple[Tensor, ForwardContext]:
        """Hidden states `[num_tokens, hidden_size]` of the chunks' tokens, one after another."""
        input_ids, context = self._prepare(chunks)
        return self.model(input_ids, context), context

    def _score_prompts(self, hidden_states: Tensor, scheduled: list[ScheduledSequence]) -> None:
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
                    sequence.prompt_logprobs += token_logprobs(
                        logits.float(),
                        self._to_device(targets),
                        sequence.params.prompt_logprobs,
                    )
                sequence.num_prompt_logprobs = max(sequence.num_prompt_logprobs, end)
            first_row += num_scheduled_tokens + len(drafts)

    def _prepare(self, chunks: list[Chunk]) -> tuple[Tensor, ForwardContext]:
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

        rows = np.repeat(np.arange(len(chunks)), query_lens)
        # Position of a token = start of its chunk + its distance from the chunk's first row.
        first_rows = np.cumsum(query_lens) - query_lens
        positions = np.arange(len(token_ids)) + (np.array(starts) - first_rows)[rows]
        blocks = block_tables[:, rows, positions // self.block_size]
        num_prompt_tokens = np.array([chunk.sequence.num_prompt_tokens for chunk in chunks])
        context = ForwardContext(
            positions=self._to_device(positions),
            rope_lengths=self._to_device(np.maximum(num_prompt_tokens[rows], positions + 1)),
            slot_mapping=self._to_device(blocks * self.block_size + positions % self.block_size),
            block_tables=self._to_device(block_tables),
            context_lens=self._to_device(np.array(context_lens)),
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
        return self._to_device(np.array(token_ids)), context

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
