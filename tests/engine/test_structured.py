"""Sequences of an engine that must follow grammars."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from axion import LLM, SamplingParams
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.engine.sampler import NOTHING_ALLOWED
from axion.engine.sequence import Sequence
from axion.engine.step import ScheduledSequence
from axion.engine.structured import StructuredOutput
from axion.errors import InvalidRequestError
from axion.llm import Generation
from axion.types import EngineConfig, FinishReason, Grammar, SequenceOutput
from tests.json_schemas import json_schema

EOS = 0
DIGITS = Grammar("regex", r"\d{4}")
# Its items refer to nothing but themselves, which shows only where one has to be written.
DEAD_END = Grammar(
    "json_schema",
    '{"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"},'
    ' "$defs": {"a": {"$ref": "#/$defs/a"}}}',
)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(
        str(tiny_model), device="cpu", kv_cache_bytes=2**26, max_model_len=512, max_num_seqs=32
    )


def grammar_of(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def usable_schemas(llm: LLM, count: int) -> list[dict[str, Any]]:
    """Random schemas, less the few that no value satisfies."""
    rng = random.Random(7)
    schemas: list[dict[str, Any]] = []
    while len(schemas) < count:
        schema = json_schema(rng)
        try:
            llm.engine.grammars.compile(grammar_of(schema))
            schemas.append(schema)
        except InvalidRequestError as error:
            if "no value can satisfy" not in error.message:
                raise
    return schemas


def check_answers(llm: LLM, schemas: list[dict[str, Any]], temperature: float, least: float):
    answers = llm.generate(
        ["Give me JSON:"] * len(schemas),
        [
            SamplingParams(
                temperature=temperature, seed=i, max_tokens=250, grammar=grammar_of(schema)
            )
            for i, schema in enumerate(schemas)
        ],
    )
    finished = 0
    for schema, answer in zip(schemas, answers, strict=True):
        if answer.finish_reason is FinishReason.STOP:
            finished += 1
            jsonschema.validate(json.loads(answer.text), schema)
    assert finished >= least * len(schemas)


@pytest.mark.parametrize(("temperature", "least"), [(0, 0.75), (1, 0.9)])
def test_every_finished_answer_of_a_random_model_validates(
    temperature: float, least: float, llm: LLM
):
    check_answers(llm, usable_schemas(llm, 80), temperature, least)


@pytest.mark.parametrize("temperature", [0, 1])
def test_every_finished_answer_of_the_bundled_model_validates(temperature: float):
    demo = LLM("axion/demo", device="cpu", kv_cache_bytes=2**26, max_model_len=512, max_num_seqs=32)
    check_answers(demo, usable_schemas(demo, 16), temperature, 0.75)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("grammar", "is_right"),
    [
        (Grammar("regex", r"[a-c]{3,5}-\d+!"), lambda text: text[-1] == "!" and "-" in text),
        (Grammar("choice", '["red", "reddish", "naïve 你"]'), ["red", "reddish", "naïve 你"]),
        (Grammar("grammar", 'start: "a" | "(" start ")"'), lambda text: "(a)" in f"({text})"),
        (Grammar("grammar", 'root ::= "x" [0-9] [0-9]?'), lambda text: 0 <= int(text[1:]) < 100),
    ],
)
def test_every_kind_of_grammar_is_followed(
    grammar: Grammar, is_right: Any, temperature: float, llm: LLM
):
    is_right = is_right.__contains__ if isinstance(is_right, list) else is_right
    params = [
        SamplingParams(temperature=temperature, seed=i, max_tokens=100, grammar=grammar)
        for i in range(8)
    ]
    for answer in llm.generate(["x"] * 8, params):
        if answer.finish_reason is FinishReason.STOP:
            assert is_right(answer.text), answer.text


def generate(llm: LLM, grammar: Grammar | None, **fields: Any) -> Generation:
    params = SamplingParams(**{"temperature": 1, "seed": 3, "grammar": grammar, **fields})
    return llm.generate("The quick", params)[0]


def test_an_answer_that_is_complete_ends_without_an_end_token(llm: LLM):
    answer = generate(llm, DIGITS)
    assert answer.text.isdigit()
    assert len(answer.text) == 4
    assert answer.finish_reason is FinishReason.STOP
    assert EOS not in answer.token_ids


def test_completeness_wins_over_the_other_ends(llm: LLM):
    assert len(generate(llm, DIGITS, min_tokens=50).text) == 4
    assert len(generate(llm, DIGITS, ignore_eos=True).text) == 4
    whole = generate(llm, DIGITS)
    exact = generate(llm, DIGITS, max_tokens=len(whole.token_ids))
    assert exact.finish_reason is FinishReason.STOP, "it is complete with its last token"


def test_the_end_token_is_allowed_only_where_the_grammar_may_end(llm: LLM):
    certain = {"logit_bias": {EOS: 100.0}, "max_tokens": 40}
    assert generate(llm, Grammar("regex", "[a-z]{3,9}"), **certain).token_ids[-1] == EOS
    assert 3 <= len(generate(llm, Grammar("regex", "[a-z]{3,9}"), **certain).text) <= 9


def test_an_optional_end_waits_for_min_tokens_and_does_not_come_with_ignore_eos(llm: LLM):
    grammar = Grammar("regex", "[a-z]+")
    certain = {"logit_bias": {EOS: 100.0}, "max_tokens": 20}
    assert len(generate(llm, grammar, **certain).token_ids) <= 3
    assert len(generate(llm, grammar, min_tokens=10, **certain).token_ids) >= 10
    endless = generate(llm, grammar, ignore_eos=True, **certain)
    assert endless.finish_reason is FinishReason.LENGTH
    assert len(endless.token_ids) == 20


def test_an_answer_that_is_cut_says_so(llm: LLM):
    answer = generate(llm, DIGITS, max_tokens=2)
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.text.isdigit()


def test_no_bias_or_penalty_breaks_the_grammar(llm: LLM):
    three = llm.tokenizer.encode("3")[0]
    words = dict.fromkeys(range(100, 150), 100.0)
    answer = generate(llm, DIGITS, logit_bias=words | {three: -100.0}, repetition_penalty=5.0)
    assert answer.text.isdigit()
    assert "3" not in answer.text


def test_stop_strings_and_stop_tokens_still_end_an_answer(llm: LLM):
    grammar = Grammar("regex", "(ab){20}")
    assert generate(llm, grammar, stop=("bab",)).text == "a"
    b = llm.tokenizer.encode("b")[0]
    answer = generate(llm, grammar, stop_token_ids=(b,))
    assert (answer.text, answer.finish_reason) == ("a", FinishReason.STOP)


def test_log_probabilities_are_the_models_own(llm: LLM):
    free = generate(llm, None, temperature=0, max_tokens=1, logprobs=5)
    bound = generate(llm, DIGITS, temperature=0, logprobs=5)
    assert bound.logprobs is not None
    assert free.logprobs is not None
    assert len(bound.logprobs) == len(bound.token_ids)
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert bound.token_ids[0] not in dict(bound.logprobs[0].top)


def test_the_same_seed_gives_the_same_answer_beside_any_others(llm: LLM):
    alone = generate(llm, DIGITS, seed=11)
    params = [
        SamplingParams(seed=11, grammar=DIGITS),
        SamplingParams(max_tokens=9, ignore_eos=True),
        SamplingParams(seed=12, grammar=Grammar("regex", "[a-f]{9}")),
    ]
    together = llm.generate(["The quick"] * 3, params)
    assert together[0].token_ids == alone.token_ids
    assert together[2].text.strip("abcdef") == ""
    assert len(together[1].token_ids) == 9


def test_a_wrong_grammar_is_refused_before_anything_runs(llm: LLM):
    with pytest.raises(InvalidRequestError, match='"not"'):
        llm.generate("x", SamplingParams(grammar=grammar_of({"not": {}})))
    assert not llm.engine.has_unfinished


# The engine itself.


def make_core(path: Path, **options: Any) -> EngineCore:
    options = {"kv_cache_bytes": 2**24, "max_model_len": 256, **options}
    return load_engine(EngineConfig(model_path=str(path), device="cpu", dtype="float32", **options))


def run(core: EngineCore, requests: dict[str, SamplingParams]) -> dict[str, list[SequenceOutput]]:
    outputs: dict[str, list[SequenceOutput]] = {name: [] for name in requests}
    for name, params in requests.items():
        assert core.add(AddRequest(name, [5, 6, 7], params)) is None
    while core.has_unfinished:
        for output in core.step():
            outputs[output.request_id].append(output)
    return outputs


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def test_preemption_does_not_change_an_answer(tiny_model: Path):
    grammar = Grammar("regex", "([a-z ]{6}, then, ){6}")
    requests = {str(i): SamplingParams(seed=i, grammar=grammar) for i in range(8)}
    roomy = make_core(tiny_model)
    expected = run(roomy, requests)
    tight = make_core(tiny_model, max_model_len=80, kv_cache_bytes=10 * 16 * 512)
    found = run(tight, requests)
    assert tight.stats.num_preemptions > 0
    for name in requests:
        assert tokens_of(found[name]) == tokens_of(expected[name])
        assert found[name][-1].finish_reason is FinishReason.STOP


def test_what_a_grammar_forces_costs_one_step_and_counts_as_output(tiny_model: Path):
    core = make_core(tiny_model)
    grammar = Grammar("regex", "(yes|no), that is what I said")
    whole = run(core, {"a": SamplingParams(grammar=grammar)})["a"]
    assert core.stats.num_generated_tokens == len(tokens_of(whole))
    assert len(whole) < 5 < len(tokens_of(whole))
    assert (whole[-1].finish_reason, whole[-1].stop_token_id) == (FinishReason.STOP, None)
    cut = run(core, {"a": SamplingParams(grammar=grammar, max_tokens=6)})["a"]
    assert len(tokens_of(cut)) == 6
    assert cut[-1].finish_reason is FinishReason.LENGTH
    stop = tokens_of(whole)[-2]
    stopped = run(core, {"a": SamplingParams(grammar=grammar, stop_token_ids=(stop,))})["a"]
    assert tokens_of(stopped)[-1] == stopped[-1].stop_token_id == stop


def test_who_wants_log_probabilities_has_every_token_sampled(tiny_model: Path):
    core = make_core(tiny_model)
    params = SamplingParams(grammar=Grammar("regex", "yes, that is what I said"), logprobs=1)
    outputs = run(core, {"a": params})["a"]
    assert all(len(o.token_ids) == len(o.logprobs or ()) == 1 for o in outputs)


def test_forbidden_tokens_are_forbidden_where_a_grammar_leaves_one_way_too(tiny_model: Path):
    core = make_core(tiny_model)
    grammar = Grammar("regex", "yes, that is what I said")
    tokens = tokens_of(run(core, {"a": SamplingParams(grammar=grammar)})["a"])
    word = tuple(tokens[2:5])
    bad = SamplingParams(grammar=grammar, bad_words_token_ids=(word,), temperature=0)
    other = tokens_of(run(core, {"a": bad})["a"])
    assert all(tuple(other[i : i + 3]) != word for i in range(len(other)))
    # Every way to write it begins with a "y".
    only = SamplingParams(grammar=grammar, allowed_token_ids=(tokens[-1],))
    [failed] = run(core, {"a": only})["a"]
    assert failed.error == NOTHING_ALLOWED


def test_a_grammar_that_leads_nowhere_fails_only_its_own_request(tiny_model: Path):
    core = make_core(tiny_model)
    outputs = run(
        core,
        {
            "dead": SamplingParams(seed=1, grammar=DEAD_END),
            "bound": SamplingParams(seed=1, grammar=DIGITS),
            "free": SamplingParams(seed=1, max_tokens=20, ignore_eos=True),
        },
    )
    assert outputs["dead"][-1].finish_reason is FinishReason.ERROR
    assert "allows nothing" in (outputs["dead"][-1].error or "")
    assert outputs["bound"][-1].finish_reason is FinishReason.STOP
    assert len(tokens_of(outputs["free"])) == 20
    core.scheduler.check_integrity()
    assert core.stats.num_blocks_used == 0


def test_a_grammar_that_is_refused_fails_only_its_own_request(tiny_model: Path):
    core = make_core(tiny_model)
    outputs = run(
        core,
        {
            "wrong": SamplingParams(grammar=Grammar("regex", "(")),
            "right": SamplingParams(grammar=DIGITS),
        },
    )
    [refused] = outputs["wrong"]
    assert refused.finish_reason is FinishReason.ERROR
    assert "unclosed group" in (refused.error or "")
    assert outputs["right"][-1].finish_reason is FinishReason.STOP


def test_a_model_without_a_tokenizer_serves_what_needs_none(tiny_model: Path, tmp_path: Path):
    for file in tiny_model.iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    outputs = run(
        make_core(tmp_path),
        {"bound": SamplingParams(grammar=DIGITS), "free": SamplingParams(max_tokens=5)},
    )
    assert "tokenizer.json" in (outputs["bound"][-1].error or "")
    assert len(tokens_of(outputs["free"])) == 5


def test_others_run_while_a_grammar_is_compiled_and_who_leaves_is_dropped(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    core = make_core(tiny_model)
    compile, may_go_on = core.grammars.compile, threading.Event()
    monkeypatch.setattr(
        core.grammars, "compile", lambda grammar: may_go_on.wait(60) and compile(grammar)
    )
    core.add(AddRequest("stays", [5], SamplingParams(grammar=DIGITS)))
    core.add(AddRequest("leaves", [5], SamplingParams(grammar=DIGITS)))
    core.add(AddRequest("free", [5], SamplingParams(max_tokens=3, ignore_eos=True)))
    outputs: list[SequenceOutput] = []
    for _ in range(5):
        outputs += core.step()
    assert [output.request_id for output in outputs] == ["free"] * 3
    assert core.stats.num_waiting == 2
    core.abort(["leaves"])
    may_go_on.set()
    while core.has_unfinished:
        outputs += core.step()
    assert {output.request_id for output in outputs} == {"free", "stays"}


@pytest.mark.parametrize("num_threads", [1, 2])
def test_drafts_have_masks_of_their_own_and_leave_the_grammar_where_it_is(
    llm: LLM, num_threads: int
):
    info = llm.engine.info
    structured = StructuredOutput(
        vocab_size=info.vocab_size,
        eos_token_ids=info.eos_token_ids,
        max_num_seqs=1,
        num_threads=num_threads,
    )
    sequence = Sequence("s", [5], SamplingParams(), seed=0)
    sequence.num_computed_tokens = 0
    sequence.matcher = llm.engine.grammars.compile(Grammar("regex", "ab[0-9]"))
    free = ScheduledSequence(Sequence("t", [5], SamplingParams(), seed=0), 1, [])
    drafts = [token for letter in "ab" for token in llm.tokenizer.encode(letter)]
    digits = {token for digit in "0123456789" for token in llm.tokenizer.encode(digit)}

    def allowed(drafts: list[int]) -> list[set[int]]:
        mask = structured.mask([free, ScheduledSequence(sequence, 1, drafts), free])
        assert mask is not None
        assert mask.rows == list(range(1, 2 + len(drafts)))
        bits = np.unpackbits(mask.bits, axis=1, bitorder="little")
        return [set(row.nonzero()[0].tolist()) for row in bits]

    first, *_ = before = allowed([])
    assert drafts[0] in first
    assert allowed(drafts) == [first, {drafts[1]}, digits]
    assert allowed([]) == before


def test_a_mask_is_only_computed_where_one_is_needed():
    structured = StructuredOutput(vocab_size=320, eos_token_ids=(0,), max_num_seqs=2)
    assert structured.mask([]) is None
