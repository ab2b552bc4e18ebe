"""Speculative decoding against plain decoding: output tokens a second, in one run.

    python benchmarks/speculative.py [--model axion/demo] [--draft-model FOLDER] [--batch 1 8]

The model answers the demo's own test questions, greedily, with and without drafts in alternation.
`again` asks a JSON question a second time in one conversation, so that the answer is a copy of an
earlier one; `free` answers repeat nothing. Ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from axion.demo.chat import render
from axion.demo.evaluate import cases
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="axion/demo")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    path = asyncio.run(resolve(args.model)).path
    tokenizer = load_tokenizer(path)
    core = EngineCore(
        EngineConfig(
            model_path=str(path),
            device="auto",
            dtype=args.dtype,
            kv_cache_bytes=2**28,
            max_num_seqs=max(args.batch),
            enable_prefix_caching=False,
            speculative="ngram",
        )
    )
    proposer = core.proposer
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
