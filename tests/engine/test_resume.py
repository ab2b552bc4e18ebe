"""A sequence that was begun elsewhere goes on as if it had never been interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.types import EngineConfig, FinishReason, Grammar, SamplingParams, SequenceOutput
from tests.parity.checkpoints import save_tiny

PROMPT = [70, 71, 72, 73, 74, 75, 76, 77, 78, 79]
JSON = Grammar("json_schema", '{"type": "array", "items": {"type": "integer"}, "minItems": 3}')
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "top_k": 40, "top_p": 0.95}
PENALTIES: dict[str, Any] = {
    "presence_penalty": 0.7,
    "frequency_penalty": 0.4,
    "repetition_penalty": 1.2,
}


def make_core(path: Path, **options: Any) -> EngineCore:
    return load_engine(
        EngineConfig(
            model_path=str(path),
            device="cpu",
            dtype="float32",
            kv_cache_bytes=2**23,
            max_model_len=256,
            **options,
        )
    )


@pytest.fixture(scope="module")
def engines(tiny_model: Path) -> dict[str, EngineCore]:
    """`fresh` remembers nothing from one sequence to the next."""
    return {
        "whole": make_core(tiny_model),
        "fresh": make_core(tiny_model, enable_prefix_caching=False, max_num_batched_tokens=16),
    }


def run(
    core: EngineCore, token_ids: list[int], params: SamplingParams, num_generated: int = 0
) -> list[SequenceOutput]:
    return run_together(core, {num_generated: token_ids}, params)[num_generated]


def run_together(
    core: EngineCore, token_ids: dict[int, list[int]], params: SamplingParams
) -> dict[int, list[SequenceOutput]]:
    """Outputs of sequences of which so many tokens were generated elsewhere."""
    outputs: dict[int, list[SequenceOutput]] = {}
    for k, begun in token_ids.items():
        refusal = core.add(AddRequest(str(k), begun, params, num_generated=k))
        outputs[k] = [] if refusal is None else [refusal]
    while core.has_unfinished:
        for output in core.step():
            outputs[int(output.request_id)].append(output)
    return outputs


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def check_every_cut(
    whole: EngineCore, fresh: EngineCore, params: SamplingParams
) -> list[SequenceOutput]:
    """The uninterrupted outputs, which every cut leads to."""
    expected = run(whole, PROMPT, params)
    token_ids = tokens_of(expected)
    assert len(token_ids) > 3
    scores = [o.logprobs[0] for o in expected if o.logprobs]
    begun = {k: PROMPT + token_ids[:k] for k in range(1, len(token_ids))}
    for k, outputs in run_together(fresh, begun, params).items():
        assert tokens_of(outputs) == token_ids[k:], k
        assert outputs[-1].finish_reason is expected[-1].finish_reason
        assert outputs[-1].stop_token_id == expected[-1].stop_token_id
        assert not any(output.prompt_logprobs for output in outputs), "they were told before"
        found = [o.logprobs[0] for o in outputs if o.logprobs]
        for entry, other in zip(found, scores[k:], strict=True):
            assert entry.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in entry.top] == [token for token, _ in other.top]
    return expected


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "ignore_eos": True},
        {**SAMPLED, "ignore_eos": True},
        {**SAMPLED, **PENALTIES, "ignore_eos": True},
        {"temperature": 0, **PENALTIES, "min_tokens": 12},
        {"temperature": 0, "ignore_eos": True, "logprobs": 3, "prompt_logprobs": 2},
        {**SAMPLED, "grammar": JSON, "logit_bias": {ord("]") - ord("!") + 5: 2.0}},
        {"temperature": 0, "grammar": JSON, "ignore_eos": True},
        {"temperature": 1.0, "seed": 3, "min_p": 0.01, "grammar": Grammar("regex", r"\d{9}!")},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_an_answer_cut_anywhere_goes_on_as_it_would_have(
    engines: dict[str, EngineCore], fields: dict[str, Any]
):
    params = SamplingParams(**{"max_tokens": 24, **fields})
    check_every_cut(engines["whole"], engines["fresh"], params)


def test_stop_tokens_end_it_where_they_would_have(engines: dict[str, EngineCore]):
    greedy = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    token_ids = tokens_of(run(engines["whole"], PROMPT, greedy))
    last = next(t for i, t in enumerate(token_ids) if i > 8 and t not in token_ids[:i])
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=(last,))
    outputs = check_every_cut(engines["whole"], engines["fresh"], params)
    assert outputs[-1].stop_token_id == last
    early = SamplingParams(
        **{**SAMPLED, "min_tokens": 10, "max_tokens": 40, "logit_bias": {token_ids[0]: 5.0}},
        stop_token_ids=(token_ids[0],),
    )
    check_every_cut(engines["whole"], engines["fresh"], early)


@pytest.mark.parametrize("case", ["llama-rope-dynamic", "llama-rope-longrope"])
def test_rotary_lengths_are_those_of_the_prompt(case: str, tmp_path: Path):
    path = save_tiny(case, tmp_path)
    params = SamplingParams(temperature=0, max_tokens=70, ignore_eos=True)
    fresh = make_core(path, enable_prefix_caching=False)
    expected = tokens_of(run(make_core(path), PROMPT, params))
    for k in (1, 53, 54, 55, 69):  # the original length of 64 is passed in between
        assert tokens_of(run(fresh, PROMPT + expected[:k], params, k)) == expected[k:]


def test_generated_tokens_are_no_cached_prompt_tokens(engines: dict[str, EngineCore]):
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    prompt = list(range(10, 42))
    token_ids = prompt + tokens_of(run(engines["whole"], prompt, params))
    outputs = run(engines["whole"], token_ids[:-10], params, 90)
    assert tokens_of(outputs) == token_ids[-10:]
    assert {output.num_cached_tokens for output in outputs} == {len(prompt)}


def test_a_beginning_that_its_grammar_forbids_fails_alone(engines: dict[str, EngineCore]):
    core = engines["whole"]
    params = SamplingParams(temperature=0, grammar=Grammar("regex", r"\d{4}"))
    token_ids = tokens_of(run(core, PROMPT, params))
    [output] = run(core, [*PROMPT, ord("x") - ord("!") + 5], params, 1)
    assert output.finish_reason is FinishReason.ERROR
    assert "grammar" in (output.error or "")
    [output] = run(core, PROMPT + token_ids, params, len(token_ids))
    assert (output.token_ids, output.finish_reason) == ([], FinishReason.STOP), "it was whole"


@pytest.mark.parametrize(("num_generated", "error"), [(-1, "-1"), (10, "10"), (5, "All 5")])
def test_counts_that_cannot_be_are_refused(
    engines: dict[str, EngineCore], num_generated: int, error: str
):
    [output] = run(engines["whole"], PROMPT, SamplingParams(max_tokens=5), num_generated)
    assert output.finish_reason is FinishReason.ERROR
    assert error in (output.error or "")
