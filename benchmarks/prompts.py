"""Prompts on a CPU in bfloat16: by torch alone, with other kernels, and with that of chunks; and in
memory that is new to the process, or brought in before.

    OMP_NUM_THREADS=2 THP_MEM_ALLOC_ENABLE=1 python benchmarks/prompts.py --prompts 1 --length 1024

One process computes them by turns. Each is as many new tokens; the time is until all have one more.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict

from axion.bench.checkpoint import make_shape
from axion.bench.shapes import shape_config, shape_folder, shapes
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.layers import cpu_kernels
from axion.layers.attention import reference
from axion.layers.cpu_kernels import attention
from axion.types import EngineConfig, SamplingParams

CACHE_BYTES, MAX_TOKENS = 2**31, 2048
PARAMS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def milliseconds(core: EngineCore, num_prompts: int, length: int) -> float:
    begin = time.perf_counter()
    for i in range(num_prompts):
        core.add(AddRequest(str(i), random.choices(range(core.info.vocab_size), k=length), PARAMS))
    while core.has_unfinished:
        core.step()
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    """Print medians, those in new memory first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=shapes(), default="qwen3-0.6b")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    size = arguments.prompts, arguments.length
    path = shape_folder(arguments.shape)
    make_shape(shape_config(arguments.shape), path)
    config = EngineConfig(
        model_path=str(path),
        dtype="bfloat16",
        kv_cache_bytes=CACHE_BYTES,
        max_model_len=MAX_TOKENS,
        max_num_batched_tokens=MAX_TOKENS,
    )
    core = load_engine(config)
    manager = core.scheduler.block_manager
    per_turn = -(-arguments.prompts * (arguments.length + 1) // manager.block_size)
    found = defaultdict(list)
    milliseconds(core, *size)
    while True:
        while core.use_idle_time():
            pass
        # What was brought in is used up, and some huge pages behind it.
        num_turns = -(-MAX_TOKENS // manager.block_size // per_turn) + 2
        if manager.num_ever_used + num_turns * per_turn > manager.num_blocks:
            break
        times = [milliseconds(core, *size) for _ in range(num_turns)]
        found["memory brought in"].append(times[0])
        found["new memory"].append(times[-1])
    while manager.num_ever_used < manager.num_blocks:
        milliseconds(core, *size)
    run_on, attend_chunks = cpu_kernels.run_on, attention.attend_chunks
    ways = {
        "torch alone": (lambda _: False, attend_chunks),
        "chunks by torch": (run_on, reference.attend),
        "all kernels": (run_on, attend_chunks),
    }
    for number in range(arguments.rounds + 1):
        for name, (cpu_kernels.run_on, attention.attend_chunks) in ways.items():
            if number:  # the first is warm-up
                found[name].append(milliseconds(core, *size))
            else:
                milliseconds(core, *size)
    for name, times in found.items():
        print(f"{name:20} {statistics.median(times):6.0f} ms of {len(times)}")


if __name__ == "__main__":
    main()
