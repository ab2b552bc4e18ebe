"""The grammar: the same for a seed, never the same in training and test, and always right."""

from __future__ import annotations

from random import Random

import pytest

from axion.demo import evaluate
from axion.demo.grammar import SHARES, SKILLS, conversation, held_out_case
from axion.demo.skills.arithmetic import number_pair
from axion.demo.skills.base import Split, is_held_out
from axion.demo.skills.letters import word_for
from axion.demo.words import CITIES, NAMES, SPEECH, WORDS, invented_word

SAMPLE = 400


def questions(skill: str, split: Split) -> set[str]:
    """What users ask, in the first turn that is theirs."""
    rng = Random(f"{skill} {split}")
    asked = set()
    for _ in range(SAMPLE):
        exchange = SKILLS[skill](rng, split)
        texts = [m["content"] for m in exchange.messages if m["role"] == "user"]
        asked.add("\n".join(texts))
    return asked


def test_every_skill_has_a_share_of_the_training() -> None:
    assert SHARES.keys() == SKILLS.keys()
    assert all(share > 0 for share in SHARES.values())


def test_the_same_seed_gives_the_same_conversations() -> None:
    first, second = Random(5), Random(5)
    assert [conversation(first) for _ in range(50)] == [conversation(second) for _ in range(50)]


def test_another_seed_gives_other_conversations() -> None:
    first, second = Random(5), Random(6)
    assert [conversation(first) for _ in range(50)] != [conversation(second) for _ in range(50)]


@pytest.mark.parametrize("skill", SKILLS)
def test_training_never_sees_a_test_question(skill: str) -> None:
    assert not questions(skill, "train") & questions(skill, "held_out")


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_answer_passes_its_own_check(skill: str, split: Split) -> None:
    rng = Random(7)
    for _ in range(SAMPLE):
        exchange = SKILLS[skill](rng, split)
        answer = evaluate.answer_text(exchange.answer)
        assert exchange.check(answer), (exchange.messages, answer)


@pytest.mark.parametrize("skill", SKILLS)
def test_no_check_accepts_just_anything(skill: str) -> None:
    rng = Random(8)
    for _ in range(SAMPLE):
        check = SKILLS[skill](rng, "held_out").check
        assert not check("")
        assert not check("I am a fish.")


@pytest.mark.parametrize("skill", SKILLS)
def test_cases_end_where_the_answer_begins(skill: str) -> None:
    rng = Random(9)
    for _ in range(50):
        assert held_out_case(rng, skill).messages[-1]["role"] in ("user", "tool")


def test_number_pairs_are_held_out_whatever_the_phrasing() -> None:
    rng = Random(10)
    for sign in "+-":
        train = {number_pair(rng, "train", sign) for _ in range(3000)}
        held_out = {number_pair(rng, "held_out", sign) for _ in range(3000)}
        assert not train & held_out


def test_words_are_held_out() -> None:
    rng = Random(11)
    train = {word_for(rng, "train") for _ in range(5000)}
    held_out = {word_for(rng, "held_out") for _ in range(5000)}
    assert not train & held_out
    assert train & set(WORDS)
    assert train - set(WORDS)
    assert held_out < set(WORDS)


@pytest.mark.parametrize("words", [WORDS, NAMES, CITIES])
def test_about_one_in_seven_is_held_out(words: tuple[str, ...]) -> None:
    share = sum(map(is_held_out, words)) / len(words)
    assert 0.08 < share < 0.22


def test_the_word_lists_have_no_word_twice() -> None:
    for words in (WORDS, NAMES, CITIES, SPEECH):
        assert len(set(words)) == len(words)
    assert not set(WORDS) & set(SPEECH)
    assert all(3 <= len(word) <= 8 for word in WORDS)


def test_invented_words_have_the_length_asked_for() -> None:
    rng = Random(12)
    lengths = {len(invented_word(rng, 4, 6)) for _ in range(500)}
    assert lengths == {4, 5, 6}
