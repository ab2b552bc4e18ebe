"""Turns what the scheduler decided into tensors, runs the model on them and samples."""

from __future__ import annotations

from collections.abc import Callable

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
        mask: Callable[[list[Sequence]], TokenMask | None] = lambda _: None,
    ) -> list[SampledToken]:
        """Compute one step; log probabilities of a prompt that wants them go to its sequence.

        Args:
            mask: computes that of the sequences that sample, while a GPU runs the model.

        Returns:
            One token for each scheduled sequence whose end the step reaches, in order.
        """
        input_ids, context = self._prepare(scheduled)
        hidden_states = self.model(input_ids, context)
        self._score_prompts(hidden_states, scheduled)
        sampling = [entry.sequence for entry in scheduled if entry.samples]
        if not sampling:
            return []
        last_rows = np.cumsum(context.query_lens) - 1
        samples = np.fromiter((entry.samples for entry in scheduled), bool, len(scheduled))
        logits = self.model.compute_logits(hidden_states[self._to_device(last_rows[samples])])
        return self.sampler(logits, sampling, mask(sampling))

    def _score_prompts(self, hidden_states: Tensor, scheduled: list[ScheduledSequence]) -> None:
        max_rows = max(1, _MAX_LOGITS // self.model.config.vocab_size)
        first_row = 0
        for sequence, num_scheduled_tokens in scheduled:
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
            first_row += num_scheduled_tokens

    def _prepare(self, scheduled: list[ScheduledSequence]) -> tuple[Tensor, ForwardContext]:
        query_lens = [entry.num_scheduled_tokens for entry in scheduled]
        starts = [entry.sequence.num_computed_tokens for entry in scheduled]
        context_lens = [start + count for start, count in zip(starts, query_lens, strict=True)]
        num_blocks = [-(-length // self.block_size) for length in context_lens]

        token_ids: list[int] = []
        num_groups = len(scheduled[0].sequence.block_tables)
        block_tables = np.zeros((num_groups, len(scheduled), max(num_blocks)), np.int64)
        for row, (entry, start, end) in enumerate(
            zip(scheduled, starts, context_lens, strict=True)
        ):
            token_ids += entry.sequence.token_ids[start:end]
            for group, table in enumerate(entry.sequence.block_tables):
                block_tables[group, row, : num_blocks[row]] = table[: num_blocks[row]]

        rows = np.repeat(np.arange(len(scheduled)), query_lens)
        # Position of a token = start of its chunk + its distance from the chunk's first row.
        first_rows = np.cumsum(query_lens) - query_lens
        positions = np.arange(len(token_ids)) + (np.array(starts) - first_rows)[rows]
        blocks = block_tables[:, rows, positions // self.block_size]
        num_prompt_tokens = np.array([entry.sequence.num_prompt_tokens for entry in scheduled])
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
                for entry, row, start, end in zip(
                    scheduled, first_rows.tolist(), starts, context_lens, strict=True
                )
                if entry.sequence.state is not None
                for run in state_cache.runs(entry.sequence.state, row, start, end)
            ],
        )
        return self._to_device(np.array(token_ids)), context

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)
