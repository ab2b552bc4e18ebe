"""Grammar-constrained against free generation: output tokens a second, in one run.

    python benchmarks/structured.py [--model axion/demo]

Every sequence generates the same number of tokens, with a grammar that is never complete or with
none. The two alternate, and each figure is the median of the rounds. `a step` are the tokens that
each sequence gets in a step, the forced ones with the sampled one, and `mask` is the time that the
mask of a step takes, for the whole batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.engine.sequence import Sequence
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
    """Times the masks of an engine's steps."""

    def __init__(self, core: EngineCore) -> None:
        self.masks: list[float] = []
        compute = core.structured.mask

        def timed(sequences: list[Sequence]) -> TokenMask | None:
            began = time.perf_counter()
            mask = compute(sequences)
            if mask is not None:
                self.masks.append(time.perf_counter() - began)
            return mask

        core.structured.mask = timed


def tokens_per_second(
    core: EngineCore, grammar: Grammar | None, batch: int, num_tokens: int
) -> tuple[float, float]:
    """Output tokens a second, and those that each sequence gets in a step."""
    for i in range(batch):
        params = SamplingParams(
            temperature=0.8, seed=i, max_tokens=num_tokens, ignore_eos=True, grammar=grammar
        )
        core.add(AddRequest(str(i), PROMPT_TOKENS, params))
    while core.stats.num_waiting:
        core.step()  # compile, prefill and first token
    began = time.perf_counter()
    count = num_outputs = 0
    while core.has_unfinished:
        outputs = core.step()
        num_outputs += len(outputs)
        count += sum(len(output.token_ids) for output in outputs)
    return count / (time.perf_counter() - began), count / num_outputs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="axion/demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--num-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    path = asyncio.run(resolve(args.model)).path
    core = load_engine(
        EngineConfig(
            model_path=str(path),
            device=args.device,
            kv_cache_bytes=2**28,
            max_num_seqs=max(args.batches),
            max_model_len=args.num_tokens + 64,
        )
    )
    clock = Clock(core)
    print(f"{'batch':>5} {'grammar':>9} {'tokens/s':>9} {'of free':>8} {'a step':>7} {'mask':>9}")
    for batch in args.batches:
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in GRAMMARS}
        masks: dict[str, str] = {}
        for grammar in GRAMMARS.values():
            tokens_per_second(core, grammar, batch, 20)  # warm
        for _ in range(args.rounds):
            for name, grammar in GRAMMARS.items():
                clock.masks.clear()
                rates[name].append(tokens_per_second(core, grammar, batch, args.num_tokens))
                masks[name] = (
                    f"{1e6 * statistics.fmean(clock.masks):.0f} µs" if clock.masks else "-"
                )
        free = statistics.median(rate for rate, _ in rates["free"])
        for name in GRAMMARS:
            rate = statistics.median(rate for rate, _ in rates[name])
            a_step = statistics.fmean(num_tokens for _, num_tokens in rates[name])
            print(
                f"{batch:5} {name:>9} {rate:9.0f} {rate / free:8.1%} {a_step:7.2f} {masks[name]:>9}"
            )


if __name__ == "__main__":
    main()
