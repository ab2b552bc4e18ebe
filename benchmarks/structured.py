"""Grammar-constrained against free generation: output tokens a second, in one run.

    python benchmarks/structured.py [--model axion/demo]

Every sequence generates the same number of tokens, with a grammar that is never complete or with
none. The two alternate, and each figure is the median of the rounds. `mask` is the time that a
mask takes in its thread, for a whole batch; `waited` is what the step still has to wait for it
once the model has run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from concurrent.futures import Future

from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.engine.structured import TokenMask
from axion.hub.resolve import resolve
from axion.types import EngineConfig, Grammar, SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "free": None,
    "schema": Grammar(
        "json_schema", json.dumps({"type": "array", "items": PERSON, "minItems": 10_000})
    ),
    "any JSON": Grammar("json_schema", '{"type": "array", "minItems": 10000}'),
    "regex": Grammar("regex", r"([a-z]{1,8} ){10000}"),
}
PROMPT_TOKENS = list(range(5, 37))


class Clock:
    """Times what the engine's steps wait for masks, and how long those take."""

    def __init__(self, core: EngineCore) -> None:
        self.masks: list[float] = []
        self.waits: list[float] = []
        compute, start = core.structured._compute, core.structured.start

        def timed_compute(constrained: dict) -> TokenMask:
            began = time.perf_counter()
            mask = compute(constrained)
            self.masks.append(time.perf_counter() - began)
            return mask

        def timed_start(sequences: list) -> Future[TokenMask] | None:
            future = start(sequences)
            return future and _TimedFuture(future, self.waits)

        core.structured._compute, core.structured.start = timed_compute, timed_start


class _TimedFuture:
    def __init__(self, future: Future[TokenMask], waits: list[float]) -> None:
        self._future = future
        self._waits = waits

    def result(self) -> TokenMask:
        began = time.perf_counter()
        mask = self._future.result()
        self._waits.append(time.perf_counter() - began)
        return mask


def tokens_per_second(
    core: EngineCore, grammar: Grammar | None, batch: int, num_tokens: int
) -> float:
    for i in range(batch):
        params = SamplingParams(
            temperature=0.8, seed=i, max_tokens=num_tokens, ignore_eos=True, grammar=grammar
        )
        core.add(AddRequest(str(i), PROMPT_TOKENS, params))
    while core.stats.num_running < batch:
        core.step()  # compile, prefill and first token
    began = time.perf_counter()
    count = 0
    while core.has_unfinished:
        count += sum(len(output.token_ids) for output in core.step())
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="axion/demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--num-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    path = asyncio.run(resolve(args.model)).path
    core = EngineCore(
        EngineConfig(
            model_path=str(path),
            device=args.device,
            kv_cache_bytes=2**28,
            max_num_seqs=max(args.batches),
            max_model_len=args.num_tokens + 64,
        )
    )
    clock = Clock(core)
    print(f"{'batch':>5} {'grammar':>9} {'tokens/s':>9} {'of free':>8} {'mask':>9} {'waited':>9}")
    for batch in args.batches:
        rates: dict[str, list[float]] = {name: [] for name in GRAMMARS}
        times: dict[str, tuple[list[float], list[float]]] = {}
        for grammar in GRAMMARS.values():
            tokens_per_second(core, grammar, batch, 20)  # warm
        for _ in range(args.rounds):
            for name, grammar in GRAMMARS.items():
                clock.masks.clear()
                clock.waits.clear()
                rates[name].append(tokens_per_second(core, grammar, batch, args.num_tokens))
                times[name] = clock.masks[:], clock.waits[:]
        free = statistics.median(rates["free"])
        for name in GRAMMARS:
            rate = statistics.median(rates[name])
            masks, waits = (
                f"{1e6 * statistics.fmean(values):.0f} µs" if values else "-"
                for values in times[name]
            )
            print(f"{batch:5} {name:>9} {rate:9.0f} {rate / free:8.1%} {masks:>9} {waits:>9}")


if __name__ == "__main__":
    main()
