"""Scheduler and block manager alone: time per step with 64 running sequences, no model.

    python benchmarks/scheduler.py

Each figure is the median over steps; the aim is below 1 ms. One group of layers is what most
models have; six are a Gemma 3's, of which five keep a window.
"""

from __future__ import annotations

import statistics
import time

from axion.engine.block_manager import BlockManager
from axion.engine.scheduler import Scheduler
from axion.engine.sequence import Sequence
from axion.engine.step import SampledToken
from axion.types import SamplingParams

NUM_SEQS = 64
PROMPT_TOKENS = 1024
OUTPUT_TOKENS = 512
BLOCK_SIZE = 16


def main() -> None:
    print(f"{NUM_SEQS} sequences of {PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens")
    for windows in ((None,), (None, *[512] * 5)):
        measure(windows)


def measure(windows: tuple[int | None, ...]) -> None:
    length = PROMPT_TOKENS + OUTPUT_TOKENS
    num_blocks = len(windows) * (NUM_SEQS * length // BLOCK_SIZE + NUM_SEQS)
    scheduler = Scheduler(
        BlockManager(num_blocks, BLOCK_SIZE, windows=windows),
        max_num_seqs=NUM_SEQS,
        max_num_batched_tokens=NUM_SEQS * PROMPT_TOKENS,
        max_model_len=length + 1,
    )
    params = SamplingParams(max_tokens=OUTPUT_TOKENS)
    for index in range(NUM_SEQS):
        prompt = [(index * 7919 + position) % 32000 for position in range(PROMPT_TOKENS)]
        scheduler.add(Sequence(str(index), prompt, params, seed=index))
    first = None
    times = []
    while scheduler.has_unfinished:
        start = time.perf_counter()
        scheduled = scheduler.schedule()
        middle = time.perf_counter()
        sampled = [[SampledToken(5)] for _ in scheduled]
        resumed = time.perf_counter()
        scheduler.update(scheduled, sampled)
        elapsed = (middle - start) + (time.perf_counter() - resumed)
        if first is None:
            first = elapsed
        else:
            times.append(elapsed)
    scheduler.check_integrity()
    p99 = statistics.quantiles(times, n=100)[98]
    print(f"groups of layers      {len(windows):4}")
    print(f"admission of all      {first * 1e3:8.3f} ms")
    print(f"decode step, median   {statistics.median(times) * 1e3:8.3f} ms")
    print(f"decode step, p99      {p99 * 1e3:8.3f} ms")


if __name__ == "__main__":
    main()
