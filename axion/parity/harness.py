"""Drives a model step by step over a paged cache, as an engine does, without the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from axion.engine import state_cache
from axion.engine.kv_cache import allocate, lay_out
from axion.engine.sequence import SequenceState
from axion.layers.context import ForwardContext, StateRun
from axion.models.base import CausalLM

BLOCK_SIZE = 4
_NUM_STATES = 64
CPU = torch.device("cpu")


@dataclass
class Run:
    """One sequence.

    Attributes:
        block_tables: for each group of layers.
        state: of a model that keeps one; where its prompt's last block ends it is kept as well.
        logits: `[vocab_size]` for each token sampled so far.
    """

    prompt: list[int]
    token_ids: list[int] = field(init=False)
    block_tables: list[list[int]] = field(default_factory=list)
    num_computed_tokens: int = 0
    state: SequenceState | None = None
    logits: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt)

    @property
    def output(self) -> list[int]:
        return self.token_ids[len(self.prompt) :]

    @property
    def last_block_end(self) -> int:
        """Tokens in the blocks that another sequence of this prompt can take over."""
        return (len(self.prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE

    def preempt(self) -> None:
        """Give up what is computed; the tokens stay."""
        self.num_computed_tokens = 0
        self.block_tables = []
        self.state = None


class Harness:
    """Blocks are handed out scattered, and hold NaN until a key or value is written: whoever
    reads a slot that is not the sequence's own, or behind the window, shows it in every logit.
    So do the slots of recurrent states.

    Args:
        num_tokens: that all runs have together, each time that they are computed.
    """

    def __init__(self, model: CausalLM, num_tokens: int = 1024) -> None:
        self.model = model
        specs = [spec.in_pieces(BLOCK_SIZE) for spec in model.kv_cache_specs()]
        dtype = model.dtype
        layout = lay_out(
            specs, num_tokens, block_size=BLOCK_SIZE, max_chunk=num_tokens, dtype=dtype
        )
        self.windows = layout.windows
        # A power of two, and so without a common divisor with 197 when there is one less.
        num_blocks = 1 << (len(self.windows) * num_tokens // BLOCK_SIZE).bit_length()
        self.kv_caches = allocate(
            specs, layout.groups, num_blocks, BLOCK_SIZE, dtype=dtype, device=CPU
        )
        for cache in self.kv_caches:
            for tensor in (cache.k, cache.v):
                tensor.fill_(torch.nan)
        self.states = state_cache.allocate(
            model.state_specs(), _NUM_STATES, dtype=dtype, device=CPU
        )
        for state in self.states:
            for tensor in state.values():
                tensor[1:] = torch.nan if tensor.is_floating_point() else -1
        self._free_states = iter(range(_NUM_STATES - 1, 0, -1))
        # 197 is prime: every block but 0 once, never two neighbours in a row.
        self._free_blocks = (1 + 197 * i % (num_blocks - 1) for i in count())

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
            run.block_tables = run.block_tables or [[] for _ in self.windows]
            for table in run.block_tables:
                while len(table) * BLOCK_SIZE < run.num_computed_tokens + num_tokens:
                    table.append(next(self._free_blocks))
        width = max(len(run.block_tables[0]) for run, _ in scheduled)
        tables = [
            [self._visible(run, group, width) for run, _ in scheduled]
            for group in range(len(self.windows))
        ]
        input_ids, positions, rope_lengths = [], [], []
        slots: list[list[int]] = [[] for _ in self.windows]
        state_runs: list[StateRun] = []
        for run, num_tokens in scheduled:
            if self.states:
                end = run.num_computed_tokens + num_tokens
                state = run.state = run.state or self.new_state(run)
                state_runs += state_cache.runs(state, len(input_ids), run.num_computed_tokens, end)
                state.source = state.slot
            for position in range(run.num_computed_tokens, run.num_computed_tokens + num_tokens):
                input_ids.append(run.token_ids[position])
                positions.append(position)
                rope_lengths.append(max(len(run.prompt), position + 1))
                for of_group, table in zip(slots, run.block_tables, strict=True):
                    block = table[position // BLOCK_SIZE]
                    of_group.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
            run.num_computed_tokens += num_tokens
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
            states=self.states,
            state_runs=state_runs,
        )
        return torch.tensor(input_ids), context

    def new_state(self, run: Run, source: int = 0) -> SequenceState:
        """A state that begins with what is in the slot `source`."""
        state = SequenceState(next(self._free_states), source)
        if run.last_block_end:
            state.checkpoints[run.last_block_end] = next(self._free_states)
        return state

    def take_over(self, run: Run) -> Run:
        """A sequence of the same prompt, over the blocks that `run` has computed of it."""
        num_blocks = run.last_block_end // BLOCK_SIZE
        again = Run(
            run.prompt,
            block_tables=[table[:num_blocks] for table in run.block_tables],
            num_computed_tokens=run.last_block_end,
        )
        if run.state is not None:
            again.state = self.new_state(again, run.state.checkpoints.get(run.last_block_end, 0))
        return again

    def _visible(self, run: Run, group: int, width: int) -> list[int]:
        """The run's block table, with what its next token does not see as block 0."""
        window, table = self.windows[group], run.block_tables[group]
        start = 0 if window is None else max(0, run.num_computed_tokens - window + 1) // BLOCK_SIZE
        return [0] * start + table[start:] + [0] * (width - len(table))

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
    runs = [harness.take_over(run) for run in alone(harness, prompts, 1)]
    harness.generate(runs, num_tokens)
    return runs


def preempted(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    runs = [Run(prompt) for prompt in prompts]
    harness.generate(runs, num_tokens // 2)
    for run in runs:
        run.preempt()
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
