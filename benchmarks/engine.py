"""The engine against transformers' own `generate`: output tokens a second, in one run.

    python benchmarks/engine.py [--model axion/demo | --shape llama-3.2-1b] [--dtype bfloat16]

Both decode greedily, from prompts of equal length, the same number of tokens, in alternation; each
figure is the median of the rounds. `transformers` gets all prompts of a batch at once (no padding
is needed, so this is its best case).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from axion.bench.checkpoint import make_shape
from axion.bench.shapes import shape_config, shape_folder, shapes
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.hub.resolve import resolve
from axion.types import EngineConfig, SamplingParams


def time_axion(core: EngineCore, prompts: list[list[int]], num_tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    start = time.perf_counter()
    for index, prompt in enumerate(prompts):
        assert core.add(AddRequest(str(index), prompt, params)) is None
    num_generated = 0
    while core.has_unfinished:
        num_generated += sum(len(output.token_ids) for output in core.step())
    assert num_generated == len(prompts) * num_tokens
    return num_generated / (time.perf_counter() - start)


@torch.inference_mode()
def time_transformers(model: LlamaForCausalLM, prompts: list[list[int]], num_tokens: int) -> float:
    input_ids = torch.tensor(prompts)
    start = time.perf_counter()
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        pad_token_id=0,
    )
    assert output.shape[1] == input_ids.shape[1] + num_tokens
    return len(prompts) * num_tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="axion/demo")
    parser.add_argument("--shape", choices=shapes())
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)

    if args.shape:
        path = shape_folder(args.shape)
        make_shape(shape_config(args.shape), path)
    else:
        path = asyncio.run(resolve(args.model)).path
    core = load_engine(
        EngineConfig(
            model_path=str(path),
            device="cpu",
            dtype=args.dtype,
            max_num_seqs=max(args.batch),
            enable_prefix_caching=False,
        )
    )
    peer = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    name = args.shape or args.model
    print(f"{name}, {args.dtype}, {args.prompt_tokens} tokens in, {args.output_tokens} out")
    print(f"{'batch':>5} {'axion tok/s':>12} {'transformers tok/s':>19} {'ratio':>6}")
    results = []
    for batch in args.batch:
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(
            0, core.info.vocab_size, (batch, args.prompt_tokens), generator=generator
        ).tolist()
        time_axion(core, prompts, 4)
        time_transformers(peer, prompts, 4)
        rounds = [
            (
                time_axion(core, prompts, args.output_tokens),
                time_transformers(peer, prompts, args.output_tokens),
            )
            for _ in range(args.rounds)
        ]
        ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
        results.append({"batch": batch, "axion": ours, "transformers": theirs})
        print(f"{batch:>5} {ours:>12.1f} {theirs:>19.1f} {ours / theirs:>6.2f}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
