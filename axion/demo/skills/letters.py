"""Spelling words and reversing them."""

from __future__ import annotations

from random import Random

from axion.demo.skills.base import Exchange, Split, assistant, draw, phrasings, says, spoken, user
from axion.demo.words import SPEECH, WORDS, invented_word

SPELL = phrasings(
    train="""
        Spell the word {w}. | Spell {w}. | Spell the word "{w}". | Spell "{w}". | Spell '{w}'. |
        How do you spell {w}? | How do you spell the word {w}? | How is "{w}" spelled? |
        How is {w} spelled? | Can you spell {w}? | Can you spell the word {w}? | Spell out {w}. |
        Spell {w} letter by letter. | Give me the letters of {w}. |
        Give me the letters of the word "{w}". | What are the letters of {w}? |
        Write the letters of the word {w}. | Spell this word: {w} | Spell: {w} |
        I want to know how to spell {w}.
    """,
    held_out="""
        How do I spell {w}? | Spell out the word {w}. | What are the letters of the word "{w}"? |
        Could you spell {w}? | How is the word {w} spelled?
    """,
)

REVERSE = phrasings(
    train="""
        Reverse the word {w}. | Reverse {w}. | Reverse the word "{w}". | Reverse "{w}". |
        Reverse '{w}'. | What is {w} backwards? | What is "{w}" backwards? |
        Write {w} backwards. | Write the word {w} backwards. | Say {w} backwards. |
        Can you reverse {w}? | Can you reverse the word {w}? | Can you write {w} backwards? |
        Turn the word {w} around. | What is {w} reversed? | Reverse the letters of {w}. |
        Reverse the letters of the word {w}. | Reverse this word: {w} | Reverse: {w} |
        Give me {w} backwards.
    """,
    held_out="""
        What is the word {w} backwards? | Can you say {w} backwards? | Write "{w}" backwards. |
        Could you reverse {w}? | What is the reverse of {w}?
    """,
)


def spell(rng: Random, split: Split) -> Exchange:
    """The letters of a word."""
    word = word_for(rng, split)
    question = spoken(rng, SPELL.pick(rng, split).format(w=word))
    answer = "-".join(word)
    return Exchange([user(question)], assistant(answer), says(answer))


def reverse(rng: Random, split: Split) -> Exchange:
    """A word written from its end."""
    word = word_for(rng, split)
    question = spoken(rng, REVERSE.pick(rng, split).format(w=word))
    answer = word[::-1]
    return Exchange([user(question)], assistant(answer), says(answer))


def word_for(rng: Random, split: Split) -> str:
    """A real word, or in training often an invented one."""
    if split == "train":
        kind = rng.random()
        if kind < 0.35:
            return rng.choice(SPEECH)
        if kind < 0.65:
            longest = 12 if kind < 0.45 else 8
            return draw(rng, split, lambda rng: invented_word(rng, 3, longest))
    return draw(rng, split, lambda rng: rng.choice(WORDS))
