"""With drafts, right or wrong, every answer is what it is without them, in fewer steps.

The tokens themselves are compared, sampled ones too: every row draws what the plain engine would
draw there, so that no test of distributions is needed.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.engine.sequence import Sequence
from axion.engine.speculative import Price, Proposer, verify
from axion.engine.step import SampledToken, ScheduledSequence
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.types import EngineConfig, FinishReason, Grammar, SamplingParams, SequenceOutput
from tests.parity.checkpoints import save_tiny
from tests.tiny_model import save_tiny_model

JSON = Grammar("json_schema", '{"type": "array", "items": {"type": "integer"}, "minItems": 3}')
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "top_k": 40, "top_p": 0.95}
PENALTIES: dict[str, Any] = {
    "presence_penalty": 0.7,
    "frequency_penalty": 0.4,
    "repetition_penalty": 1.2,
}
PROMPTS = {
    "a": [70, 71, 72, 73] * 9,
    "b": [70, 71, 72, 73] * 4 + [9, 8, 7],
    "c": list(range(100, 121)),
    "d": [5],
}


def make_core(path: Path, **options: Any) -> EngineCore:
    options = {"kv_cache_bytes": 2**23, "max_model_len": 96, "block_size": 4, **options}
    return load_engine(EngineConfig(model_path=str(path), device="cpu", dtype="float32", **options))


class FixedPrice(Price):
    """Not measured, so that the number of steps is always the same."""

    def of(self, num_seqs: int) -> float:
        return 0.3


class Oracle:
    """Knows what will be said, and proposes it with a share of wrong tokens among it."""

    def __init__(self, answers: dict[str, list[int]], share_wrong: float) -> None:
        self.answers = answers
        self.share_wrong = share_wrong
        self.rng = random.Random(1)

    def propose(self, scheduled: list[ScheduledSequence], limits: list[int]) -> list[list[int]]:
        return [
            [
                self.rng.randrange(1, 199) if self.rng.random() < self.share_wrong else token_id
                for token_id in self.next(entry.sequence)[:limit]
            ]
            for entry, limit in zip(scheduled, limits, strict=True)
        ]

    def next(self, sequence: Sequence) -> list[int]:
        # Also beyond the answer's end, where everything would be wrong.
        answer = self.answers[sequence.request_id] + [17, 18, 19, 20]
        return answer[sequence.num_output_tokens :]


def run(
    core: EngineCore, params: dict[str, SamplingParams], proposer: Proposer | None
) -> dict[str, list[SequenceOutput]]:
    core.proposer = proposer
    core.scheduler.draft_price = FixedPrice()
    outputs: dict[str, list[SequenceOutput]] = {name: [] for name in params}
    for name, own in params.items():
        assert core.add(AddRequest(name, PROMPTS[name], own)) is None
    while core.has_unfinished:
        for output in core.step():
            outputs[output.request_id].append(output)
        core.scheduler.check_integrity()
    assert core.stats.num_blocks_used == 0
    return outputs


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def check_equal(found: list[SequenceOutput], expected: list[SequenceOutput]) -> None:
    assert tokens_of(found) == tokens_of(expected)
    assert found[-1].finish_reason is expected[-1].finish_reason
    assert found[-1].stop_token_id == expected[-1].stop_token_id
    for name in ("logprobs", "prompt_logprobs"):
        scores, others = (
            [entry for output in outputs for entry in getattr(output, name) or ()]
            for outputs in (found, expected)
        )
        assert len(scores) == len(others)
        for score, other in zip(scores, others, strict=True):
            assert score.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in score.top] == [token for token, _ in other.top]


@pytest.fixture(scope="module")
def core(tiny_model: Path) -> EngineCore:
    return make_core(tiny_model)


@pytest.fixture(scope="module")
def tight_core(tiny_model: Path, core: EngineCore) -> EngineCore:
    """Whose cache holds hardly more than one sequence, and whose steps are short."""
    bytes_per_block = core.info.kv_cache_bytes // core.info.num_blocks
    return make_core(
        tiny_model, kv_cache_bytes=26 * bytes_per_block, max_num_batched_tokens=20, max_num_seqs=4
    )


@pytest.fixture(scope="module")
def windowed_core(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> EngineCore:
    """With layers whose windows are much shorter than the answers."""
    path = save_tiny("gemma3", tmp_path_factory.mktemp("gemma3"))
    shutil.copy(tiny_model / "tokenizer.json", path)
    return make_core(path, max_num_seqs=4)


WORDS = ((9,), (10, 11), (12, 13, 14), *((token_id,) * 2 for token_id in range(9, 15)))
FIELDS = [
    {"temperature": 0, "ignore_eos": True},
    {**SAMPLED, "ignore_eos": True, "logprobs": 3},
    {**SAMPLED, **PENALTIES, "ignore_eos": True},
    {"temperature": 0, **PENALTIES, "min_tokens": 12, "logit_bias": {0: 9.0}},
    {"temperature": 0, "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 2},
    {"temperature": 0, "ignore_eos": True, "max_tokens": None},
    {**SAMPLED, "allowed_token_ids": (*range(9, 15),), "bad_words_token_ids": WORDS},
    {**SAMPLED, "grammar": JSON, "max_tokens": 40},
    {**SAMPLED, "grammar": Grammar("regex", r"(\d{4}-){5}x"), "ignore_eos": True},
    {"temperature": 1.0, "min_p": 0.01, "grammar": Grammar("regex", r"\d{9}!"), "logprobs": 1},
]


@pytest.mark.parametrize("fixture", ["core", "tight_core", "windowed_core"])
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(fields))
def test_answers_are_equal_whatever_is_proposed(
    fixture: str, fields: dict[str, Any], request: pytest.FixtureRequest
):
    core = request.getfixturevalue(fixture)
    num_preemptions = core.stats.num_preemptions
    params = {
        name: SamplingParams(**{"max_tokens": 30, "seed": i, **fields})
        for i, name in enumerate(PROMPTS)
    }
    expected = run(core, params, None)
    answers = {name: tokens_of(outputs) for name, outputs in expected.items()}
    # With what is cached of the answers before.
    for share_wrong in (0.0, 0.3, 1.0) if fixture == "core" else (0.3,):
        found = run(core, params, Oracle(answers, share_wrong))
        for name, outputs in found.items():
            check_equal(outputs, expected[name])
    if fixture == "tight_core" and "grammar" not in fields:
        assert core.stats.num_preemptions > num_preemptions


def test_right_drafts_save_steps_and_wrong_ones_stop(core: EngineCore):
    params = {"a": SamplingParams(temperature=0, ignore_eos=True, max_tokens=40)}

    def steps(proposer: Proposer | None) -> tuple[int, int, int]:
        before = core.stats
        outputs = run(core, params, proposer)
        answers["a"] = tokens_of(outputs["a"])
        after = core.stats
        return (
            after.num_steps - before.num_steps,
            after.num_draft_tokens - before.num_draft_tokens,
            after.num_accepted_tokens - before.num_accepted_tokens,
        )

    answers: dict[str, list[int]] = {}
    assert steps(None) == (40, 0, 0)
    num_steps, num_drafts, num_accepted = steps(Oracle(answers, 0.0))
    assert num_drafts == num_accepted == 40 - num_steps
    assert num_steps <= 6
    num_steps, num_drafts, num_accepted = steps(Oracle({"a": [1] * 99}, 0.0))
    assert (num_steps, num_accepted) == (40, 0)
    assert num_drafts <= 16


def test_a_stop_token_among_right_drafts_ends_the_answer(core: EngineCore):
    greedy = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}
    answers = {"c": tokens_of(run(core, {"c": SamplingParams(**greedy)}, None)["c"])}
    last = next(t for i, t in enumerate(answers["c"]) if i > 8 and t not in answers["c"][:i])
    params = {"c": SamplingParams(**greedy, stop_token_ids=(last,))}
    expected = run(core, params, None)
    check_equal(run(core, params, Oracle(answers, 0.0))["c"], expected["c"])
    assert expected["c"][-1].stop_token_id == last


def test_drafts_end_where_the_context_does(tiny_model: Path):
    core = make_core(tiny_model, max_model_len=44)
    params = {name: SamplingParams(temperature=0, ignore_eos=True) for name in PROMPTS}
    expected = run(core, params, None)
    answers = {name: tokens_of(outputs) for name, outputs in expected.items()}
    found = run(core, params, Oracle(answers, 0.0))
    for name, outputs in found.items():
        check_equal(outputs, expected[name])
        assert outputs[-1].finish_reason is FinishReason.LENGTH
        assert len(PROMPTS[name]) + len(tokens_of(outputs)) == 44


def test_a_draft_whose_keys_are_not_numbers_harms_nobody(tiny_model: Path):
    core = make_core(tiny_model)
    params = {name: SamplingParams(temperature=0, ignore_eos=True, max_tokens=20) for name in "cd"}
    expected = run(core, params, None)
    core.model.lm_head.weight = torch.nn.Parameter(core.model.lm_head.weight.clone())
    with torch.no_grad():
        core.model.model.embed_tokens.weight[299] = torch.nan
    found = run(core, params, Oracle({"c": [299] * 20, "d": tokens_of(expected["d"])}, 0.0))
    for name, outputs in found.items():
        check_equal(outputs, expected[name])
    assert core.stats.num_draft_tokens > core.stats.num_accepted_tokens > 0


def test_a_step_without_memory_for_drafts_is_computed_without_them(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    core = make_core(tiny_model)
    params = {name: SamplingParams(temperature=0, ignore_eos=True, max_tokens=20) for name in "cd"}
    expected = run(core, params, None)
    launch = core.runner.launch

    def without_memory(scheduled: list[ScheduledSequence], mask: Any) -> list[list[SampledToken]]:
        if any(entry.draft_token_ids for entry in scheduled):
            raise MemoryError
        return launch(scheduled, mask)

    monkeypatch.setattr(core.runner, "launch", without_memory)
    found = run(core, params, Oracle({name: tokens_of(expected[name]) for name in "cd"}, 0.0))
    for name, outputs in found.items():
        check_equal(outputs, expected[name])
    assert core.stats.num_out_of_memory > 0


def test_with_deterministic_drafts_change_no_bit(tiny_model: Path):
    core = make_core(tiny_model, deterministic=True, max_num_seqs=4)
    params = {
        name: SamplingParams(temperature=0, ignore_eos=True, max_tokens=20, logprobs=3)
        for name in PROMPTS
    }
    expected = run(core, params, None)
    answers = {name: tokens_of(outputs) for name, outputs in expected.items()}
    found = run(core, params, Oracle(answers, 0.3))
    for name, outputs in found.items():
        assert tokens_of(outputs) == answers[name]
        scores, others = (
            [entry for output in of for entry in output.logprobs or ()]
            for of in (outputs, expected[name])
        )
        assert scores == others
    assert core.stats.num_accepted_tokens > 0


def test_a_repetitive_answer_takes_few_steps_with_ngrams(tiny_model: Path):
    core = make_core(tiny_model, speculative="ngram")
    assert core.proposer is not None
    # What is forbidden to say anything else repeats itself.
    params = {"a": SamplingParams(temperature=0, max_tokens=50, logit_bias={70: 100.0})}
    outputs = run(core, params, core.proposer)["a"]
    assert tokens_of(outputs) == [70] * 50
    assert len(outputs) < 10


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same vocabulary, smaller, and with an opinion of its own."""
    folder = tmp_path_factory.mktemp("models") / "other"
    return save_tiny_model(folder, num_hidden_layers=1, num_attention_heads=2, hidden_size=32)


def test_wrong_drafts_leave_nothing_in_what_they_completed(tmp_path: Path):
    """A draft may be the last of several tokens that are kept as one."""
    core = make_core(save_tiny("deepseek-v4", tmp_path))
    params = {
        name: SamplingParams(temperature=0, max_tokens=14, ignore_eos=True) for name in ("a", "b")
    }
    expected = run(core, params, None)
    answers = {name: tokens_of(outputs) for name, outputs in expected.items()}
    found = run(core, params, Oracle(answers, share_wrong=0.4))
    for name, outputs in expected.items():
        check_equal(found[name], outputs)
    assert core.stats.num_draft_tokens > core.stats.num_accepted_tokens > 0


@pytest.mark.parametrize("draft", ["itself", "another"])
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "ignore_eos": True},
        {**SAMPLED, **PENALTIES, "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 1},
        {**SAMPLED, "grammar": JSON},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_answers_are_equal_with_a_draft_model(
    core: EngineCore, tiny_model: Path, other_model: Path, draft: str, fields: dict[str, Any]
):
    path = tiny_model if draft == "itself" else other_model
    roomy = make_core(tiny_model, draft_model_path=str(path))
    bytes_per_block = roomy.info.kv_cache_bytes // roomy.info.num_blocks
    tight = make_core(
        tiny_model,
        draft_model_path=str(path),
        kv_cache_bytes=26 * bytes_per_block,
        max_num_batched_tokens=20,
    )
    params = {
        name: SamplingParams(**{"max_tokens": 30, "seed": i, **fields})
        for i, name in enumerate(PROMPTS)
    }
    expected = run(core, params, None)
    for other in (roomy, roomy, tight):  # the second time with a warm cache
        before = other.stats
        found = run(other, params, other.proposer)
        for name, outputs in found.items():
            check_equal(outputs, expected[name])
        num_drafts = other.stats.num_draft_tokens - before.num_draft_tokens
        num_accepted = other.stats.num_accepted_tokens - before.num_accepted_tokens
        assert num_drafts
        if draft == "itself" and "grammar" not in fields:
            assert num_accepted >= (0.99 if other is roomy else 0.9) * num_drafts


def test_a_draft_model_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path):
    def refusal(draft_path: Path, **options: Any) -> str:
        with pytest.raises(ModelLoadError) as error:
            make_core(tiny_model, draft_model_path=str(draft_path), **options)
        return error.value.message

    folder = save_tiny_model(tmp_path / "short", max_position_embeddings=64)
    assert "takes 64 tokens" in refusal(folder)
    folder = save_tiny_model(tmp_path / "foreign")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its token 37 is 'B', the model's 'A'" in refusal(folder)


def test_models_that_cannot_take_back_a_token_are_not_speculated_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CausalLM, "can_rewind", False)
    assert make_core(tiny_model, speculative="ngram").proposer is None
    with pytest.raises(ModelLoadError, match="cannot take back"):
        make_core(tiny_model, draft_model_path=str(tiny_model))


def test_the_price_is_what_drafts_take_longer():
    price = Price()
    entries = [entry_with([]) for _ in range(4)]
    for entry in entries:
        entry.sequence.num_computed_tokens = 1
    plain = [entry._replace(num_scheduled_tokens=1) for entry in entries]
    drafting = [*plain[:2], *(entry._replace(draft_token_ids=[3]) for entry in plain[2:])]
    price.book(drafting, 9.0)
    assert price.of(4) < 0.1, "unknown until there is something to compare with"
    for _ in range(50):
        price.book(plain, 1.0)
        price.book(drafting, 1.5)
        price.book(entries, 100.0)  # chunks of prompts
    assert price.of(4) == pytest.approx(1.0, rel=0.05), "half a step of four, for two"
    assert price.of(3) < 0.1


def entry_with(drafts: list[int]) -> ScheduledSequence:
    sequence = Sequence("s", [1, 2], SamplingParams(), seed=0)
    return ScheduledSequence(sequence, 2, drafts)


@pytest.mark.parametrize(
    ("drafts", "rows", "counts"),
    [
        ([], [5], 1),
        ([5, 6], [5, 6, 7], 3),
        ([5, 6], [4, 6, 7], 1),
        ([5, 6], [5, 4, 7], 2),
        ([], ["nan"], 1),
        ([5, 6], ["nan", 6, 7], 0),
        ([5, 6], [5, "nan", 7], 1),
        ([5, 6], [4, "nan", 7], 1),
    ],
)
def test_rows_count_up_to_the_first_wrong_draft(
    drafts: list[int], rows: list[int | str], counts: int
):
    tokens = [
        SampledToken(0, error=row) if isinstance(row, str) else SampledToken(row) for row in rows
    ]
    assert verify(entry_with(drafts), tokens, lambda _, token: token) == tokens[:counts]


def test_forced_tokens_take_the_place_of_drafts():
    tokens = [SampledToken(5, forced=[6, 7]), SampledToken(1), SampledToken(2), SampledToken(8)]

    def force(_: Sequence, token: SampledToken) -> SampledToken:
        return token

    assert verify(entry_with([5, 6, 7]), tokens, force) == [tokens[0], tokens[3]]
    assert verify(entry_with([5, 6, 9]), tokens, force) == [tokens[0]]
