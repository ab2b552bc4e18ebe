"""Which architectures Axion serves, measured: `python -m tests.parity.catalog` (some ten minutes).

Each architecture of transformers that writes text, and each of Axion's own, is made small, saved
with every parameter random, loaded, and compared with transformers. What comes out is written to
`axion/models/catalog.json`, from which the router knows what the fallback serves, and to
`docs/models.md`.
"""

from __future__ import annotations

import ast
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from axion.engine.loader import load_model
from axion.errors import AxionError
from axion.models.registry import model_classes
from axion.parity import tiny
from axion.parity.harness import WAYS, Harness

ROOT = Path(__file__).parent.parent.parent
CATALOG = ROOT / "axion" / "models" / "catalog.json"
DOCUMENT = ROOT / "docs" / "models.md"

NUM_TOKENS = 32
TOLERANCE = 1e-4
TIMEOUT_S = 300
MEMORY_BYTES = 10 * 2**30

# Over what `tiny.shrink` makes of the default configuration, where that alone does not do.
CHANGES: dict[str, dict[str, Any]] = {}


class Row(NamedTuple):
    """What was measured of an architecture.

    Attributes:
        way: `native`, `fallback`, `refused`, or `untested`: no small model of it could be made.
        reason: why it is refused, untested, or not equal.
        equal: logits and greedy tokens are transformers'.
    """

    way: str
    equal: bool = False
    reason: str = ""


def architectures() -> list[str]:
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *model_classes()})


def measure(architecture: str) -> Row:
    way = "native" if architecture in model_classes() else "fallback"
    try:
        config = tiny.shrink(tiny.base_config(architecture), **CHANGES.get(architecture, {}))
        reference = tiny.build(config)
    except Exception as error:  # whatever transformers says of a configuration
        return Row("untested", reason=_sentence(error))
    with tempfile.TemporaryDirectory() as folder:
        try:
            reference.save_pretrained(folder)
        except Exception as error:
            return Row("untested", reason=_sentence(error))
        try:
            model = load_model(Path(folder), device=torch.device("cpu"), dtype="float32")
        except AxionError as error:
            return Row("refused", reason=error.message.replace(folder, ""))
        longest = model.max_length() - NUM_TOKENS
        prompts = [prompt[:longest] for prompt in tiny.random_prompts()]
        expected = [generate(reference, prompt) for prompt in prompts]
        for name in ("alone", *WAYS):
            runs = WAYS[name](Harness(model), prompts, NUM_TOKENS)
            for run, (logits, token_ids) in zip(runs, expected, strict=True):
                difference = (torch.stack(run.logits) - logits).abs().max().item()
                if difference > TOLERANCE * max(1.0, logits.abs().max().item()):
                    return Row(way, reason=f"{name}: logits differ by {difference:.1e}")
                if run.output != token_ids:
                    return Row(way, reason=f"{name}: other tokens")
    return Row(way, equal=True)


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int]) -> tuple[torch.Tensor, list[int]]:
    """What transformers generates, greedily, without a cache: all is computed anew each time."""
    token_ids, rows = list(prompt), []
    for _ in range(NUM_TOKENS):
        rows.append(model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1])
        token_ids.append(int(rows[-1].argmax()))
    return torch.stack(rows), token_ids[len(prompt) :]


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def measure_apart(architecture: str) -> Row:
    """The same in a process of its own, which may crash, fill its memory or not end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.parity.catalog"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(architecture, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIMEOUT_S):
            return Row("untested", reason=f"not done in {TIMEOUT_S} s")
        return ours.recv()
    except EOFError:
        process.join()
        return Row("untested", reason=f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _in_child(architecture: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    try:
        row = measure(architecture)
    except Exception as error:  # of a forward pass
        row = Row("untested", reason=_sentence(error))
    connection.send(row)


def main(names: list[str]) -> None:
    todo = names or architectures()
    with ThreadPoolExecutor(2) as threads:
        for name, row in zip(todo, threads.map(measure_apart, todo), strict=True):
            print(f"{name:40} {row.way:9} {'equal' if row.equal else row.reason}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
