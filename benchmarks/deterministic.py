"""What DETERMINISTIC costs: output tokens a second with and without it, in one run.

    python benchmarks/deterministic.py [--shape llama-3.2-1b] [--batch 1 8 32]

128 tokens in, 32 out, in alternation; each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from random import Random

from axion.bench.checkpoint import make_shape
from axion.bench.shapes import shape_config, shape_folder, shapes
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.hub.resolve import resolve
from axion.types import EngineConfig, SamplingParams

PROMPT_LEN, OUTPUT_LEN = 128, 32


def tokens_per_second(core: EngineCore, batch: int, random: Random) -> float:
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_LEN, ignore_eos=True)
    began = time.perf_counter()
    for index in range(batch):
        prompt = [random.randrange(1, core.info.vocab_size) for _ in range(PROMPT_LEN)]
        assert core.add(AddRequest(str(index), prompt, params)) is None
    while core.has_unfinished:
        core.step()
    return batch * OUTPUT_LEN / (time.perf_counter() - began)


def model_folder(shape: str | None) -> Path:
    if shape is None:
        return asyncio.run(resolve("axion/demo")).path
    folder = shape_folder(shape)
    make_shape(shape_config(shape), folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(shapes()))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    path = model_folder(args.shape)
    cores = {}
    for deterministic in (False, True):
        began = time.perf_counter()
        cores[deterministic] = load_engine(
            EngineConfig(
                model_path=str(path),
                max_num_seqs=max(args.batch),
                max_model_len=PROMPT_LEN + OUTPUT_LEN,
                kv_cache_bytes=2**30,
                deterministic=deterministic,
            )
        )
        print(f"loaded in {time.perf_counter() - began:.1f} s, {deterministic=}", flush=True)
    random = Random(0)
    for batch in args.batch:
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(args.rounds + 1):
            for deterministic, core in cores.items():
                rates[deterministic].append(tokens_per_second(core, batch, random))
        plain, same = (statistics.median(rates[key][1:]) for key in (False, True))
        print(f"batch {batch:3}: {plain:8.1f} {same:8.1f} tokens/s, {same / plain:.2f}", flush=True)


if __name__ == "__main__":
    main()
