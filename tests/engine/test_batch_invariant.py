"""DETERMINISTIC: what a request gets does not depend on what else there is, to the last bit."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from axion.demo import MODEL_DIR
from axion.engine import batch_invariant
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.errors import ModelLoadError
from axion.types import EngineConfig, SamplingParams, SequenceOutput
from tests.parity.checkpoints import save_tiny

PARAMS = SamplingParams(temperature=0.9, seed=3, max_tokens=12, ignore_eos=True, logprobs=5)


def make_core(path: Path, **options: Any) -> EngineCore:
    options = {"kv_cache_bytes": 2**23, "max_model_len": 256, **options}
    config = EngineConfig(model_path=str(path), device="cpu", deterministic=True, **options)
    return load_engine(config)


def run(
    core: EngineCore, prompts: list[list[int]], order: Random, *, rate: float = 0.5
) -> list[list[SequenceOutput]]:
    """Each request's outputs; requests come in any order, at random times or (rate 1) at once."""
    outputs: list[list[SequenceOutput]] = [[] for _ in prompts]
    waiting = list(enumerate(prompts))
    order.shuffle(waiting)
    while waiting or core.has_unfinished:
        while waiting and (not core.has_unfinished or order.random() < rate):
            index, prompt = waiting.pop()
            assert core.add(AddRequest(str(index), prompt, PARAMS)) is None
        for output in core.step():
            assert output.error is None
            outputs[int(output.request_id)].append(output)
    return outputs


def bits(outputs: list[SequenceOutput]) -> list[Any]:
    """Tokens and log probabilities, whose floats are equal only where the logits' bits are."""
    return [
        (output.token_ids, [(p.logprob, p.top) for p in output.logprobs or ()])
        for output in outputs
        if output.token_ids
    ]


CASES = {
    "llama": "float32",
    "gemma2": "bfloat16",
    "gpt-oss": "bfloat16",
    "qwen3-moe": "float32",
    "deepseek-v3": "bfloat16",
    "demo": "bfloat16",
}


@pytest.mark.parametrize("case", CASES)
def test_a_request_gets_the_same_bits_in_any_mix(case: str, tmp_path: Path) -> None:
    dtype = CASES[case]
    path = MODEL_DIR if case == "demo" else save_tiny(case, tmp_path)
    core = make_core(path, dtype=dtype)
    random = Random(1)
    shared = [random.randrange(1, core.info.vocab_size) for _ in range(40)]
    prompts = [
        (shared if index % 2 else [])
        + [random.randrange(1, core.info.vocab_size) for _ in range(random.randint(1, 30))]
        for index in range(5)
    ]
    alone = [bits(run(core, [prompt], random)[0]) for prompt in prompts]
    # The prefix cache has all of them now; the other engines' have none, and little room.
    assert [bits(x) for x in run(core, prompts, random)] == alone
    chunked = make_core(path, dtype=dtype, max_num_batched_tokens=24, max_num_seqs=4)
    assert [bits(x) for x in run(chunked, prompts, random)] == alone
    num_blocks = core.scheduler.block_manager.max_blocks_held(160)
    num_bytes = core.info.kv_cache_bytes // core.info.num_blocks * num_blocks
    tight = make_core(path, dtype=dtype, max_model_len=160, kv_cache_bytes=num_bytes)
    assert [bits(x) for x in run(tight, prompts, random, rate=1)] == alone
    assert tight.stats.num_preemptions > 0


def test_sizes_that_disagree_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    linear = torch.nn.functional.linear

    def by_rows(x: torch.Tensor, *args: Any) -> torch.Tensor:
        return linear(x, *args) * (1 + 1e-3 * (len(x) < 64))

    monkeypatch.setattr(torch.nn.functional, "linear", by_rows)
    core = make_core(save_tiny("llama", tmp_path), dtype="float32")
    assert core.runner.model.sizes == (64, 128, 256, 512)


def test_a_model_that_sees_its_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    linear = torch.nn.functional.linear

    def by_place(x: torch.Tensor, *args: Any) -> torch.Tensor:
        return linear(x, *args) * torch.linspace(1, 1.1, len(x))[:, None]

    monkeypatch.setattr(torch.nn.functional, "linear", by_place)
    with pytest.raises(ModelLoadError, match="DETERMINISTIC cannot be kept"):
        make_core(save_tiny("llama", tmp_path), dtype="float32")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("deepseek-v32", "last bits of scores"),
        ("qwen3-next", "how a prompt is cut"),
    ],
)
def test_a_model_whose_results_depend_on_the_batch_is_refused(
    tmp_path: Path, case: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=f"cannot be kept for .*{reason}.*Unset it"):
        make_core(save_tiny(case, tmp_path), dtype="float32")


def test_a_cache_too_small_to_find_out_is_refused(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    info = make_core(path).info
    two_blocks = 2 * info.kv_cache_bytes // info.num_blocks
    with pytest.raises(ModelLoadError, match="DETERMINISTIC needs a KV cache of"):
        make_core(path, max_model_len=32, kv_cache_bytes=two_blocks)


def test_more_sequences_than_the_largest_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="CONCURRENT_REQUESTS is at most 512"):
        make_core(save_tiny("llama", tmp_path), max_num_seqs=513)
    assert batch_invariant._SIZES[-1] == 512
