"""Speculative decoding against plain decoding: output tokens a second, in one run.

    python benchmarks/speculative.py [--batch 1 8] [--draft-model FOLDER]
    python benchmarks/speculative.py --shape llama-3.2-1b

The bundled model answers its own test questions, greedily, with and without drafts in alternation.
`again` asks a JSON question a second time in one conversation, so that the answer is a copy of an
earlier one; `free` answers repeat nothing. Ratios are medians over the rounds.

With a shape, whose random weights say nothing that could be guessed, what a step of so many drafts
costs, all of them wrong, as a multiple of a step without: drafts pay where a sequence's tokens in a
step, 1 and what is accepted, are more.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from axion.bench.checkpoint import make_shape
from axion.bench.shapes import shape_config, shape_folder, shapes
from axion.demo.chat import render
from axion.demo.evaluate import cases
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.draft_pace import MAX_DRAFT_TOKENS, Pace
from axion.engine.messages import AddRequest
from axion.engine.step import ScheduledSequence
from axion.hub.resolve import resolve
from axion.text.tokenizer import load_tokenizer
from axion.types import EngineConfig, SamplingParams

TASKS = {
    "free": ("greet", "about", "limits"),
    "json": ("json",),
    "tools": ("tool_call", "tool_result"),
}


def prompts(num_prompts: int) -> dict[str, list[str]]:
    """For each task, what the model reads."""
    made = cases(per_skill=num_prompts)
    tasks = {
        task: [case.prompt for case in made if case.skill in skills][:: len(skills)]
        for task, skills in TASKS.items()
    }
    tasks["again"] = [
        render(
            [*case.messages, {"role": "assistant", "content": case.expected}, case.messages[-1]],
            add_generation_prompt=True,
        )
        for case in made
        if case.skill == "json"
    ]
    return tasks


def tokens_per_second(core: EngineCore, batch: int, token_ids: list[list[int]]) -> float:
    """Of answers to all prompts, so many at a time."""
    params = SamplingParams(temperature=0, max_tokens=160)
    waiting = list(enumerate(token_ids))
    num_tokens = num_running = 0
    began = time.perf_counter()
    while waiting or num_running:
        while waiting and num_running < batch:
            index, prompt = waiting.pop()
            assert core.add(AddRequest(str(index), prompt, params)) is None
            num_running += 1
        for output in core.step():
            num_tokens += len(output.token_ids)
            num_running -= output.finish_reason is not None
    return num_tokens / (time.perf_counter() - began)


class WrongDrafts:
    """Proposes one token again and again, to each of the sequences."""

    num_drafts = 0

    def propose(self, scheduled: list[ScheduledSequence], limits: list[int]) -> list[list[int]]:
        return [[1] * self.num_drafts for _ in limits]


class NoPace(Pace):
    def limit(self) -> int:
        return MAX_DRAFT_TOKENS


def print_step_costs(core: EngineCore, batch: int, rounds: int) -> None:
    core.proposer = proposer = WrongDrafts()
    counts = (0, 1, 2, 4, 8, 16)
    params = SamplingParams(temperature=0, ignore_eos=True)
    for index in range(batch):
        core.add(AddRequest(str(index), list(range(2, 130)), params))
    core.step()
    for sequence in core.scheduler:
        sequence.pace = NoPace()
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds + 1):
        for count in counts:
            proposer.num_drafts = count
            began = time.perf_counter()
            core.step()
            seconds[count].append(time.perf_counter() - began)
    core.abort([str(index) for index in range(batch)])
    medians = {count: statistics.median(times[1:]) for count, times in seconds.items()}
    costs = "  ".join(f"{count}: {medians[count] / medians[0]:.2f}" for count in counts[1:])
    print(
        f"{batch:5} sequences, {1e3 * medians[0]:.1f} ms a step; drafts: cost  {costs}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=shapes())
    parser.add_argument("--draft-model", default="")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.shape:
        path = shape_folder(args.shape)
        make_shape(shape_config(args.shape), path)
    else:
        path = asyncio.run(resolve("axion/demo")).path
    core = load_engine(
        EngineConfig(
            model_path=str(path),
            kv_cache_bytes=2**28,
            max_num_seqs=max(args.batch),
            max_model_len=2048,
            enable_prefix_caching=False,
            speculative="auto" if args.draft_model else "ngram",
            draft_model_path=args.draft_model,
        )
    )
    if args.shape:
        for batch in args.batch:
            print_step_costs(core, batch, args.rounds)
        return
    proposer = core.proposer
    tokenizer = load_tokenizer(path)
    tasks = {
        task: [tokenizer.encode_chat(text) for text in texts]
        for task, texts in prompts(args.prompts).items()
    }
    print(f"{'batch':>5} {'task':>6} {'plain tok/s':>12} {'drafts tok/s':>13} {'ratio':>6}", end="")
    print(f" {'drafted':>8} {'accepted':>9}")
    for batch in args.batch:
        for task, token_ids in tasks.items():
            tokens_per_second(core, batch, token_ids[:4])
            rates: list[tuple[float, float]] = []
            before = core.stats
            for _ in range(args.rounds):
                core.proposer = None
                plain = tokens_per_second(core, batch, token_ids)
                core.proposer = proposer
                rates.append((plain, tokens_per_second(core, batch, token_ids)))
            after = core.stats
            num_drafted = after.num_draft_tokens - before.num_draft_tokens
            num_accepted = after.num_accepted_tokens - before.num_accepted_tokens
            num_tokens = (after.num_generated_tokens - before.num_generated_tokens) / 2
            ratio = statistics.median(drafts / plain for plain, drafts in rates)
            plain, drafts = (statistics.median(column) for column in zip(*rates, strict=True))
            print(
                f"{batch:5} {task:>6} {plain:12.0f} {drafts:13.0f} {ratio:6.2f}"
                f" {num_drafted / num_tokens:8.0%} {num_accepted / max(1, num_drafted):9.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
