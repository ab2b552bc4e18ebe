"""The evaluator, with engines that need no model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from axion.demo.evaluate import cases, evaluate, evaluate_with_failures, own_word_cases
from axion.demo.grammar import SKILLS


def test_cases_are_the_same_for_a_seed_and_other_for_another() -> None:
    first, again, other = cases(1, 5), cases(1, 5), cases(2, 5)
    assert [case.prompt for case in first] == [case.prompt for case in again]
    assert [case.prompt for case in first] != [case.prompt for case in other]


def test_every_skill_gets_its_number_of_different_cases() -> None:
    made = cases(0, 100)
    for skill in SKILLS:
        prompts = {case.prompt for case in made if case.skill == skill}
        assert len(prompts) == 100


def test_an_engine_that_is_always_right_scores_one() -> None:
    asked = cases(3, 10)
    expected = {case.prompt: f"{case.expected}<|im_end|>\n" for case in asked}
    accuracy = evaluate(lambda prompts: [expected[prompt] for prompt in prompts], asked)
    assert accuracy == dict.fromkeys(SKILLS, 1.0)


def test_an_engine_that_babbles_scores_nothing_and_is_shown() -> None:
    asked = cases(3, 4)

    def babble(prompts: Sequence[str]) -> list[str]:
        return ["so so so"] * len(prompts)

    accuracy, failures = evaluate_with_failures(babble, asked)
    assert set(accuracy.values()) == {0.0}
    assert [failure.case for failure in failures] == asked
    assert {failure.answer for failure in failures} == {"so so so"}


def test_the_models_own_words_are_asked_for_apart_from_the_skills() -> None:
    asked = own_word_cases()
    assert not {case.skill for case in asked} & SKILLS.keys()
    assert [case.expected for case in asked if "tool." in case.prompt] == ["t-o-o-l", "loot"]
    assert all(case.check(case.expected) for case in asked)


def test_an_engine_that_loses_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        evaluate(lambda prompts: ["Hello!"], cases(0, 1))


def test_the_grammar_and_the_evaluator_do_not_load_torch() -> None:
    code = "import sys, axion.demo.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
