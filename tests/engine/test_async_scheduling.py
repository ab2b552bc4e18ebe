"""Steps launched before the last one's tokens are known give the tokens of steps that wait.

The host and the device are one here, so that nothing is saved; what is compared is what comes out.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.types import EngineConfig, FinishReason, Grammar, SamplingParams, SequenceOutput
from tests.parity.checkpoints import save_tiny

NUM_REQUESTS = 14
BLOCK_SIZE = 4
MAX_MODEL_LEN = 64


class Arrival(NamedTuple):
    request: AddRequest
    step: int
    aborted_at: int | None


def make_core(path: Path, **options) -> EngineCore:
    config = EngineConfig(
        model_path=str(path),
        device="cpu",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=5,
        max_num_batched_tokens=12,
        block_size=BLOCK_SIZE,
        **{"kv_cache_bytes": 2**22, **options},
    )
    return load_engine(config)


def make_tight_core(path: Path) -> EngineCore:
    """Ahead of the device, with little more than the blocks of one long sequence."""
    roomy = make_core(path, async_scheduling=True)
    bytes_per_block = roomy.info.kv_cache_bytes // roomy.info.num_blocks
    num_blocks = roomy.scheduler.block_manager.max_blocks_held(MAX_MODEL_LEN) + 1
    return make_core(path, async_scheduling=True, kv_cache_bytes=num_blocks * bytes_per_block)


def arrivals(seed: int, vocab_size: int, *, with_grammars: bool) -> list[Arrival]:
    """Requests of all kinds, some of which share a prefix, and some whose client leaves."""
    rng = random.Random(seed)
    shared = [rng.randrange(1, vocab_size) for _ in range(20)]
    result = []
    for i in range(NUM_REQUESTS):
        length = rng.randrange(1, 30)
        own = [rng.randrange(1, vocab_size) for _ in range(length)]
        prompt = (shared + own)[:length] if rng.random() < 0.4 else own
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.0, 0.8, 1.5]),
            top_k=rng.choice([0, 0, 20]),
            seed=rng.randrange(1000),
            max_tokens=rng.choice([0, 1, 9, 40, 40, None]),
            stop_token_ids=tuple(rng.sample(range(vocab_size), 3)),
            repetition_penalty=1.3 if i == 3 else 1.0,
            allowed_token_ids=tuple(range(5, 20)) if i in (5, 6) else (),
            bad_words_token_ids=((5,), (6, 7), (8, 9, 10)) if i in (6, 9) else (),
            logprobs=rng.choice([None, None, 2]),
            prompt_logprobs=rng.choice([None, None, None, 1]),
            ignore_eos=rng.random() < 0.5,
            grammar=Grammar("regex", "[a-z ]*x") if with_grammars and i == 7 else None,
        )
        step = rng.randrange(20)
        leaves = step + rng.randrange(1, 20) if rng.random() < 0.2 else None
        result.append(Arrival(AddRequest(str(i), prompt, params), step, leaves))
    return result


def run(core: EngineCore, requests: list[Arrival]) -> dict[str, list[SequenceOutput]]:
    """All outputs of each request."""
    outputs: dict[str, list[SequenceOutput]] = {each.request.request_id: [] for each in requests}
    last = max(each.step for each in requests)
    step = 0
    while core.has_unfinished or step <= last:
        for each in requests:
            if each.step == step:
                assert core.add(each.request) is None
            if each.aborted_at == step:
                core.abort([each.request.request_id])
        for output in core.step():
            outputs[output.request_id].append(output)
        step += 1
    assert core.stats.num_blocks_used == 0
    core.scheduler.check_integrity()
    return outputs


def told(outputs: list[SequenceOutput]) -> tuple[list[int], list[float], list[float], str | None]:
    """Tokens, their log probabilities, those of the prompt, and why it ended."""
    logprobs = [entry.logprob for o in outputs for entry in o.logprobs or []]
    of_prompt = [entry.logprob for o in outputs for entry in o.prompt_logprobs or []]
    reasons = [o.finish_reason for o in outputs if o.finish_reason is not None]
    assert len(reasons) <= 1
    assert not reasons or outputs[-1].finish_reason is not None, "nothing follows the last output"
    tokens = [token_id for o in outputs for token_id in o.token_ids]
    assert all(token_id >= 0 for token_id in tokens)
    return tokens, logprobs, of_prompt, reasons[0] if reasons else None


def count_unknown_tokens(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an entry for each launched step that computes unknown tokens: how many."""
    launch = core.runner.launch
    counts: list[int] = []

    def counting(scheduled, mask):
        if count := sum(entry.sequence.token_ids[-1] < 0 for entry in scheduled):
            counts.append(count)
        return launch(scheduled, mask)

    monkeypatch.setattr(core.runner, "launch", counting)
    return counts


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups of layers, one with a window."""
    return save_tiny("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.mark.parametrize(
    ("model", "seed"), [*(("tiny_model", seed) for seed in range(4)), ("gemma", 4), ("gemma", 5)]
)
def test_the_tokens_are_those_of_steps_that_wait(
    model: str, seed: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    path = request.getfixturevalue(model)
    waiting = make_core(path, async_scheduling=False)
    requests = arrivals(seed, waiting.info.vocab_size, with_grammars=model == "tiny_model")
    expected = run(waiting, requests)
    ahead = make_tight_core(path)
    num_unknown = count_unknown_tokens(ahead, monkeypatch)
    found = run(ahead, requests)
    assert ahead.stats.num_preemptions > 0
    assert len(num_unknown) > 20, "steps were launched whose tokens nobody knew"
    for each in requests:
        name = each.request.request_id
        # A client that leaves may have been told a step more or less.
        check_told(found[name], expected[name], is_whole=each.aborted_at is None)


def check_told(
    found: list[SequenceOutput], expected: list[SequenceOutput], *, is_whole: bool = True
) -> None:
    """Both tell the same; if not as a whole, then as far as both go."""
    *found_parts, found_reason = told(found)
    *expected_parts, expected_reason = told(expected)
    for part, expected_part in zip(found_parts, expected_parts, strict=True):
        shared = min(len(part), len(expected_part))
        assert part[:shared] == pytest.approx(expected_part[:shared], abs=1e-4)
        assert not is_whole or len(part) == len(expected_part)
    assert not is_whole or found_reason == expected_reason


GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def test_a_sequence_that_ends_is_not_told_what_was_computed_behind_its_end(tiny_model: Path):
    core = make_core(tiny_model, async_scheduling=True)
    arrival = Arrival(AddRequest("a", [1, 2, 3], GREEDY), 0, None)
    tokens, *_ = told(run(core, [arrival])["a"])
    stop = next(token for i, token in enumerate(tokens) if i > 3 and token not in tokens[:i])
    params = SamplingParams(
        temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,), logprobs=0
    )
    stopped, logprobs, _, reason = told(
        run(core, [Arrival(AddRequest("a", [1, 2, 3], params), 0, None)])["a"]
    )
    assert stopped == tokens[: tokens.index(stop) + 1]
    assert len(logprobs) == len(stopped)
    assert reason is FinishReason.STOP


def test_a_step_that_fails_ahead_ends_its_sequences_and_no_others(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    core = make_core(tiny_model, async_scheduling=True, enable_prefix_caching=False)
    expected = told(run(core, [Arrival(AddRequest("b", [4, 5], GREEDY), 0, None)])["b"])
    launch = core.runner.launch
    steps = []

    def fail_the_fourth(scheduled, mask):
        steps.append([entry.sequence.request_id for entry in scheduled])
        if len(steps) == 4:
            raise RuntimeError("fault")
        return launch(scheduled, mask)

    monkeypatch.setattr(core.runner, "launch", fail_the_fourth)
    outputs = run(
        core,
        [
            Arrival(AddRequest("a", [1, 2, 3], GREEDY), 0, None),
            Arrival(AddRequest("b", [4, 5], GREEDY), 5, None),
        ],
    )
    assert steps[3] == ["a"]
    assert outputs["a"][-1].finish_reason is FinishReason.ERROR
    assert len(outputs["a"]) == 3, "two tokens, and the error"
    assert told(outputs["b"]) == expected


def test_a_step_that_finds_no_memory_ahead_is_tried_again_when_the_other_is_done(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, prompt_logprobs=0)
    requests = [Arrival(AddRequest(name, [ord(name)] * 20, params), 0, None) for name in "ab"]
    core = make_core(tiny_model, async_scheduling=True)
    expected = run(core, requests)
    launch = core.runner.launch
    num_calls = 0

    def fail_thrice(scheduled, mask):
        nonlocal num_calls
        num_calls += 1
        launched = launch(scheduled, mask)
        if num_calls in (2, 7, 8):  # a chunk; then a decode, ahead and not
            raise torch.OutOfMemoryError
        return launched

    monkeypatch.setattr(core.runner, "launch", fail_thrice)
    for name, outputs in run(core, requests).items():
        check_told(outputs, expected[name])
    assert core.stats.num_out_of_memory == 1


def test_logits_that_are_not_numbers_end_a_sequence_that_is_computed_on(tiny_model: Path):
    core = make_core(tiny_model, async_scheduling=True, enable_prefix_caching=False)
    arrival = Arrival(AddRequest("a", [1, 2, 3], GREEDY), 0, None)
    tokens, *_ = told(run(core, [arrival])["a"])
    last = next(i for i in range(2, 12) if tokens[i] not in (1, 2, 3, *tokens[:i]))
    core.model.model.embed_tokens.weight.data[tokens[last]] = float("nan")
    found, *_, reason = told(run(core, [arrival])["a"])
    assert found == tokens[: last + 1]
    assert reason is FinishReason.ERROR
