"""Drives a model step by step over a paged cache, as an engine does, without the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from axion.engine.kv_cache import allocate
from axion.layers.context import ForwardContext
from axion.models.base import CausalLM

BLOCK_SIZE = 4
CPU = torch.device("cpu")


@dataclass
class Run:
    """One sequence.

    Attributes:
        logits: `[vocab_size]` for each token sampled so far.
    """

    prompt: list[int]
    token_ids: list[int] = field(init=False)
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt)

    @property
    def output(self) -> list[int]:
        return self.token_ids[len(self.prompt) :]


class Harness:
    """Blocks are handed out scattered, and hold NaN until a key or value is written: whoever
    reads a slot that is not the sequence's own shows it in every logit."""

    def __init__(self, model: CausalLM, num_blocks: int = 512) -> None:
        self.model = model
        self.kv_caches = allocate(
            model.kv_cache_specs(), num_blocks, BLOCK_SIZE, dtype=model.dtype, device=CPU
        )
        for cache in self.kv_caches:
            for tensor in cache:
                tensor.fill_(torch.nan)
        # 197 is prime: every block once, never two neighbours in a row.
        self._free_blocks = (197 * i % num_blocks for i in count())

    @torch.inference_mode()
    def step(self, scheduled: list[tuple[Run, int]]) -> None:
        """Compute so many next tokens of each run; one that reaches its end samples greedily."""
        input_ids, context = self.prepare(scheduled)
        hidden_states = self.model(input_ids, context)
        last_rows = torch.tensor(context.query_lens).cumsum(0) - 1
        logits = self.model.compute_logits(hidden_states[last_rows])
        for (run, _), row in zip(scheduled, logits, strict=True):
            if run.num_computed_tokens == len(run.token_ids):
                run.logits.append(row)
                run.token_ids.append(int(row.argmax()))

    def prepare(self, scheduled: list[tuple[Run, int]]) -> tuple[Tensor, ForwardContext]:
        """What the model is called with for the step; the tokens count as computed."""
        for run, num_tokens in scheduled:
            while len(run.block_table) * BLOCK_SIZE < run.num_computed_tokens + num_tokens:
                run.block_table.append(next(self._free_blocks))
        input_ids, positions, rope_lengths, slots = [], [], [], []
        for run, num_tokens in scheduled:
            for position in range(run.num_computed_tokens, run.num_computed_tokens + num_tokens):
                input_ids.append(run.token_ids[position])
                positions.append(position)
                rope_lengths.append(max(len(run.prompt), position + 1))
                block = run.block_table[position // BLOCK_SIZE]
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
            run.num_computed_tokens += num_tokens
        width = max(len(run.block_table) for run, _ in scheduled)
        tables = [run.block_table + [0] * (width - len(run.block_table)) for run, _ in scheduled]
        context_lens = [run.num_computed_tokens for run, _ in scheduled]
        context = ForwardContext(
            positions=torch.tensor(positions),
            rope_lengths=torch.tensor(rope_lengths),
            slot_mapping=torch.tensor(slots),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            context_lens=torch.tensor(context_lens),
            query_lens=[num_tokens for _, num_tokens in scheduled],
            context_lens_list=context_lens,
            kv_caches=self.kv_caches,
            block_size=BLOCK_SIZE,
        )
        return torch.tensor(input_ids), context

    def generate(self, runs: list[Run], num_tokens: int, *, budget: int = 1 << 20) -> None:
        """Until every run has so many tokens: each step, oldest first, what fits the budget."""
        while True:
            scheduled, left = [], budget
            for run in runs:
                if len(run.output) < num_tokens and left:
                    chunk = min(len(run.token_ids) - run.num_computed_tokens, left)
                    scheduled.append((run, chunk))
                    left -= chunk
            if not scheduled:
                return
            self.step(scheduled)


def alone(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    runs = [Run(prompt) for prompt in prompts]
    for run in runs:
        harness.generate([run], num_tokens)
    return runs


def mixed(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    runs = [Run(prompt) for prompt in prompts]
    for started in range(1, len(runs)):
        for _ in range(min(5, num_tokens)):
            harness.generate(runs[:started], len(runs[started - 1].output) + 1)
    # The newest first: the order within a batch means nothing.
    harness.generate(runs[::-1], num_tokens)
    return runs


def chunked(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    runs = [Run(prompt) for prompt in prompts]
    harness.generate(runs, num_tokens, budget=9)
    return runs


def warm(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    first = alone(harness, prompts, 1)
    runs = []
    for run in first:
        num_blocks = (len(run.prompt) - 1) // BLOCK_SIZE
        runs.append(
            Run(
                run.prompt,
                block_table=run.block_table[:num_blocks],
                num_computed_tokens=num_blocks * BLOCK_SIZE,
            )
        )
    harness.generate(runs, num_tokens)
    return runs


def preempted(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    runs = [Run(prompt) for prompt in prompts]
    harness.generate(runs, num_tokens // 2)
    for run in runs:
        run.num_computed_tokens = 0
        run.block_table = []
    harness.generate(runs, num_tokens)
    return runs


WAYS: dict[str, Callable[[Harness, list[list[int]], int], list[Run]]] = {
    "alone": alone,
    "in a batch that mixes prompts and generation": mixed,
    "prompts in chunks beside generation": chunked,
    "over blocks that another sequence computed": warm,
    "after a preemption": preempted,
}
"""How an engine comes to the tokens of the prompts; they must be the same in every way."""
